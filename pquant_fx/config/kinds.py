"""The choices that several sections share: who shares a format, and how a format comes about."""

from __future__ import annotations

from typing import Literal

__all__ = ["DataGranularity", "DataQuantizer", "EbopsSign", "Granularity", "WeightQuantizer", "WeightRange"]

Granularity = Literal["per_tensor", "per_channel", "per_weight"]
DataGranularity = Literal["per_tensor", "per_channel", "per_element"]
WeightQuantizer = Literal["dynamic", "tqt", "lsq", "hgq"]
DataQuantizer = Literal["calibrated", "dynamic", "tqt", "lsq", "pact", "hgq"]
WeightRange = Literal["minmax", "mse"]
EbopsSign = Literal["hgq2", "weights_unsigned", "always"]
