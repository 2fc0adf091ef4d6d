"""The smallest format of every constant by itself: what a weight whose width belongs to it alone is stored in when training ends."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pquant_fx.graph.interval_codes import trailing_zeros
from pquant_fx.quantize.static import FixedQuantizer

__all__ = ["minimal_formats", "with_minimal_formats"]


def minimal_formats(value: Tensor) -> tuple[Tensor, Tensor]:
    """(i, f) of `value`'s shape: the bits of |v| from its first to its last one, i + f of them; i = f = 0 where v is 0.

    0.75 = 0b11 * 2^-2 -> (0, 2);   80 = 0b101 * 2^4 -> (7, -4). These are the bits that a constant multiplier costs
    (HGQ, Sun et al. 2024), so the width of a frozen weight is what the exact EBOPs count.
    """
    mantissa, exponent = np.frexp(value.detach().cpu().double().numpy())
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    used = whole != 0
    i = np.where(used, exponent, 0)
    f = np.where(used, 53 - exponent - trailing_zeros(whole), 0)
    return torch.from_numpy(i.astype(np.float64)), torch.from_numpy(f.astype(np.float64))


def with_minimal_formats(quantizer: FixedQuantizer, value: Tensor) -> FixedQuantizer:
    """`quantizer`, or where every element has a width of its own, one that gives each element of `value` (which is q(value)
    already) the format it needs: trailing zeros dropped, no bit for zeros. What has one width keeps it, any tool can say that.
    """
    k, i, f = quantizer.kif()
    width = k + i + f
    if width.numel() != value.numel() or bool((width == width.flatten()[:1]).all()):
        return quantizer
    i, f = (t.to(quantizer.f) for t in minimal_formats(value))
    k = torch.where(value == 0, 0.0, k.reshape(value.shape))
    return FixedQuantizer(k.to(quantizer.f), i, f, quantizer.rounding, "SAT", saturates=False).eval()
