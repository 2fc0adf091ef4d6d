"""The data quantizer of fixed width whose range follows the batches of the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pquant_fx.quantize.fixed_point import integer_bits
from pquant_fx.quantize.kernel import widened
from pquant_fx.quantize.observers import Observer, over_ranks
from pquant_fx.quantize.quantizers import CalibratedQuantizer
from pquant_fx.quantize.ranges import extremes, settled, widened_to_wrap

__all__ = ["TrackedQuantizer"]


class TrackedQuantizer(CalibratedQuantizer):
    """A CalibratedQuantizer that in training moves its range towards that of each batch, m <- (1 - momentum) m + momentum batch.

    W and k stay, i covers the moving range, f = W - k - i. Eval uses what is stored, and so does training once
    `freeze_range()` was called (at the start of fine-tuning). Ranks of torch.distributed agree on each batch.
    """

    low: Tensor
    high: Tensor
    following: Tensor

    def __init__(self, width: int, shape: tuple[int, ...] = (), *args: Any, momentum: float = 0.01, **keywords: Any) -> None:
        super().__init__(width, shape, *args, **keywords)
        self.momentum = momentum
        self.register_buffer("low", torch.zeros(self.shape))
        self.register_buffer("high", torch.zeros(self.shape))
        self.register_buffer("following", torch.tensor(1))
        self._following = True

    def freeze_range(self, on: bool = True) -> None:
        """Keep the range as it is from now on, in training too."""
        self.following.fill_(int(not on))
        self._following = not on

    def settle(self, observer: Observer) -> None:
        super().settle(observer)
        low, high = observer.range()
        self.low.copy_(low)
        self.high.copy_(high)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self._following and self._calibrated and self._observer is None and x.numel():
            with torch.no_grad():
                self._follow(widened(x))
        return super().forward(x)

    def _follow(self, x: Tensor) -> None:
        low, high = extremes(x, self.shape)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            low, high = over_ranks(low, "MIN"), over_ranks(high, "MAX")
        for end, batch in ((self.low, low), (self.high, high)):
            end.lerp_(torch.where(batch.isfinite(), batch, end).to(end.dtype), self.momentum)
        zero = (self.high <= 0) & ((self.low >= 0) | (self.k == 0))
        i = settled(integer_bits(self.low * self.k, self.high) + self.safety_bits, zero)
        i = widened_to_wrap(i, self.high, self.width - self.k, self.rounding, self.overflow)
        self.i.copy_(i)
        self.f.copy_(self.width - self.k - i)

    def _loaded(self) -> None:
        super()._loaded()
        if "following" in self._buffers:
            self._following = bool(self.following)
