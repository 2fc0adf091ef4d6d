"""The learned quantizers by the names that configurations use."""

from __future__ import annotations

from typing import Any, Literal

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.quantize.hgq_kinds import HGQData, HGQWeight
from pquant_fx.quantize.learned import LearnedQuantizer
from pquant_fx.quantize.learned_range import LSQData, LSQWeight, PACTData, TQTData, TQTWeight

__all__ = ["LearnedKind", "Role", "make_learned"]

LearnedKind = Literal["tqt", "lsq", "pact", "hgq"]
Role = Literal["weight", "bias", "data", "table"]

_OF_DATA: dict[str, type[LearnedQuantizer]] = {"tqt": TQTData, "lsq": LSQData, "pact": PACTData, "hgq": HGQData}
_OF_PARAMETERS: dict[str, type[LearnedQuantizer]] = {"tqt": TQTWeight, "lsq": LSQWeight, "hgq": HGQWeight}


def make_learned(kind: LearnedKind, role: Role, shape: tuple[int, ...], width: int, **keywords: Any) -> LearnedQuantizer:
    """The learned quantizer of that kind for a value of that role, with the keywords of its class.

    shape: of the format, size 1 on shared axes, () for one format. width: stored bits to begin with. Raises ConfigError: PQ405
    when there is no such kind for the role, PQ306 and PQ407 for impossible formats and modes.
    """
    kinds = _OF_DATA if role in ("data", "table") else _OF_PARAMETERS
    if kind not in kinds:
        raise ConfigError(Problem("PQ405", f"there is no '{kind}' quantizer for a {role}", f"use one of {', '.join(kinds)}"))
    made: Any = kinds[kind]
    return made(shape, width, **({"role": role} if kind == "hgq" else {}), **keywords)
