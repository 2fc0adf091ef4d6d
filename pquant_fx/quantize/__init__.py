"""Quantization: the fixed-point arithmetic, the quantizer modules, and calibration.

`kernel`, `grid`, `rounding` and `gradients` hold the arithmetic, `fixed_point` the checked function; `static` and `quantizers` the
modules with stored formats, `dynamic` and `tracked` those that follow a value, `learned`, `learned_range` and `hgq` those that
are trained; `observers`, `histograms`, `ranges` and `calibration` set their formats, `lsb` says how fine a value of a graph is.
"""

from __future__ import annotations

from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.quantize.hgq import HGQQuantizer
from pquant_fx.quantize.hgq_kinds import HGQData, HGQWeight
from pquant_fx.quantize.learned import LearnedQuantizer
from pquant_fx.quantize.learned_kinds import make_learned
from pquant_fx.quantize.learned_range import LSQData, LSQWeight, PACTData, TQTData, TQTWeight
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer
from pquant_fx.quantize.tracked import TrackedQuantizer

__all__ = [
    "AccumulatorQuantizer",
    "CalibratedQuantizer",
    "DynamicQuantizer",
    "FixedQuantizer",
    "HGQData",
    "HGQQuantizer",
    "HGQWeight",
    "LSQData",
    "LSQWeight",
    "LearnedQuantizer",
    "PACTData",
    "TQTData",
    "TQTWeight",
    "TrackedQuantizer",
    "fixed_point",
    "make_learned",
]
