"""Whether floating point holds the codes of a format: refused where our own arithmetic can not, told where that around it can not."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from pquant_fx.errors import PQuantWarning
from pquant_fx.quantize.fixed_point import require_exact

__all__ = ["check_precision", "is_narrow"]

_SIGNIFICANT = {torch.float16: 11, torch.bfloat16: 8}


def is_narrow(x: Tensor) -> bool:
    """Whether `x` is in a half type, or autocast will give it to its consumers in one."""
    return x.dtype in _SIGNIFICANT or torch.is_autocast_enabled(x.device.type)


def check_precision(quantizer: nn.Module, width: int, magnitude_bits: int, x: Tensor) -> None:
    """Raise ConfigError (PQ306) when x's dtype can not hold `width` bits; warn, once a quantizer, when half types lose some.

    The arithmetic of quantizers is float32 for half types; what loses bits is the operator that casts the result back.
    """
    require_exact(width, x.dtype)
    if torch.compiler.is_compiling() or not is_narrow(x):
        return
    dtype = x.dtype if x.dtype in _SIGNIFICANT else torch.get_autocast_dtype(x.device.type)
    if magnitude_bits > _SIGNIFICANT.get(dtype, magnitude_bits) and not quantizer.__dict__.get("_told", False):
        quantizer.__dict__["_told"] = True
        name = str(dtype).removeprefix("torch.")
        what = f"{name} holds {_SIGNIFICANT[dtype]} bits, a format here has {magnitude_bits}: training is less exact than the circuit"
        warnings.warn(f"{what}; use fewer bits, or train without {name}", PQuantWarning, stacklevel=2)
