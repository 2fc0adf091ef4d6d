"""Configurations drawn from a seed: formats of 1 to 16 bits, every mode that an engine has, formats by layer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

__all__ = ["ENGINE_MODES", "draw_config"]

_ROUNDINGS = ("RND", "TRN", "RND_CONV", "TRN_ZERO", "RND_ZERO", "RND_MIN_INF", "RND_INF")
ENGINE_MODES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "onnx": (_ROUNDINGS, ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM")),
    "hls4ml": (_ROUNDINGS, ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP")),
    "rtl": (("RND", "TRN", "RND_CONV"), ("SAT", "SAT_SYM", "WRAP")),
}
"""Rounding and overflow modes of each engine; integer, torch and plain ONNX have them all."""


def draw_config(seed: int, engine: str, paths: Sequence[str]) -> dict[str, Any]:
    """A configuration in the modes of `engine`; paths: of the modules, some of which get formats of their own."""
    chance = random.Random(f"config {seed}")
    roundings, overflows = ENGINE_MODES[engine]
    bits = {"default_data_bits": _width(chance), "default_weight_bits": _width(chance)}
    if chance.random() < 0.25:
        bits = {
            "default_data_integer_bits": chance.randint(0, 4),
            "default_data_fractional_bits": chance.randint(0, 6),
            "default_weight_integer_bits": chance.randint(0, 2),
            "default_weight_fractional_bits": chance.randint(1, 7),
        }
    rounding = chance.choice(roundings)
    known = [overflow for overflow in overflows if overflow != "WRAP_SM" or rounding == "TRN"]  # the others are defined for TRN alone
    settings = {
        **bits,
        "round_mode": rounding,
        "overflow_mode_data": chance.choice([*known, "SAT", "SAT"]),
        "overflow_mode_parameters": chance.choice([*known, "SAT", "SAT"]),
        "granularity": chance.choice(["per_tensor", "per_channel"]),
    }
    layers = {path: {"weight_bits": _width(chance), "data_bits": _width(chance)} for path in paths if chance.random() < 0.3}
    return {
        "preset": "fixed8",
        "quantization_parameters": settings,
        "joins": {"policy": chance.choice(["align", "shared", "requant"])},
        **({"layers": layers} if layers else {}),
    }


def _width(chance: random.Random) -> int:
    return chance.choice([1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 12, 16])
