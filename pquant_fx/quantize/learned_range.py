"""Formats of fixed width whose range is trained: TQT, LSQ with a power-of-two step, PACT. All end as formats (k, i, f).

With W fixed, f = W - k - i, so that dq/di is that of i minus that of f in `kernel`'s table: (round(x) - x) ln2 inside the range,
and ln2 times the bound outside.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.quantize.bit_gradients import scaled_gradient, straight
from pquant_fx.quantize.fixed_point import INTEGER_BITS_LIMIT, integer_bits
from pquant_fx.quantize.gradients import summed
from pquant_fx.quantize.kernel import Grid, quantize_value
from pquant_fx.quantize.learned import FromData, FromValue, LearnedQuantizer, parameter
from pquant_fx.quantize.observers import Observer
from pquant_fx.quantize.ranges import extremes, settled

__all__ = ["LSQData", "LSQWeight", "PACTData", "RangeQuantizer", "TQTData", "TQTWeight"]


class RangeQuantizer(LearnedQuantizer):
    """A quantizer of W bits that trains one number a group, `t`, which says i."""

    t: nn.Parameter
    bit_parameters = ("t",)

    @abstractmethod
    def _integer(self, t: Tensor) -> Tensor:
        """i as an integer, from t without its gradient."""

    @abstractmethod
    def _exponent(self, x: Tensor | None = None) -> Tensor:
        """A function of t that i is the rounded value of; its gradient is that of i."""

    def bits(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        i = straight(self._exponent(), self._integer(self.t.detach()))
        return i, self.width - self.k - i

    def clamp_(self) -> None:
        with torch.no_grad():
            self.t.clamp_(-INTEGER_BITS_LIMIT, INTEGER_BITS_LIMIT)

    def _value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            magnitude = self.width - self.k
            i = self._integer(self.t)
            grid = Grid.saturating(self.k, i, magnitude - i, self.overflow, self._signed)
        exponent = self._exponent(x)
        return quantize_value(
            x, self.k, exponent, magnitude - exponent, self.rounding, self.overflow, self.training, grid=grid, signed=self._signed
        )


class TQT(RangeQuantizer):
    """Trained quantization thresholds (Jain et al. 2019): t is the threshold's exponent, i = ceil(t)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.t = parameter(self.shape, 0.0)

    def _integer(self, t: Tensor) -> Tensor:
        return t.ceil().clamp_(-INTEGER_BITS_LIMIT, INTEGER_BITS_LIMIT)

    def _exponent(self, x: Tensor | None = None) -> Tensor:
        return self.t

    def _take(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        self.k.copy_(k)
        self.t.copy_(i - 0.5)


class LSQ(RangeQuantizer):
    """Learned step size (Esser et al. 2020) with a step of a power of two: t is log2 of the step, f = -round(t).

    The gradient of the step is D ln2 times that of the paper, scaled by 1/sqrt(N * largest code), N values of a sample a group.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.t = parameter(self.shape, 0.0)

    def _integer(self, t: Tensor) -> Tensor:
        return t.round().clamp_(-INTEGER_BITS_LIMIT, INTEGER_BITS_LIMIT) + (self.width - self.k)

    def _exponent(self, x: Tensor | None = None) -> Tensor:
        t: Tensor = self.t
        if x is not None:
            t = scaled_gradient(t, (self._values(x) * self._largest()).rsqrt())
        return t + (self.width - self.k)

    def _values(self, x: Tensor) -> int:
        """Values that share a format, of one sample."""
        samples = len(x) if isinstance(self, FromData) and x.dim() else 1
        return max(x.numel() // (samples * torch.Size(self.shape).numel()), 1)

    def _largest(self) -> Tensor:
        return (torch.exp2(self.width - self.k) - 1).clamp(min=1)

    def _take(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        self.k.copy_(k)
        self.t.copy_(-f)


class TQTData(FromData, TQT):
    """TQT of data. Keywords: see FromData."""


class LSQData(FromData, LSQ):
    """LSQ of data; the first step is that of the calibrated format. Keywords: see FromData."""


class TQTWeight(FromValue, TQT):
    """TQT of a weight, k = 1; the first threshold is the largest magnitude of each group."""

    def _begin(self, x: Tensor) -> None:
        low, high = extremes(x, self.shape)
        zero = (low == 0) & (high == 0)
        largest = torch.maximum(high, -low).to(self.t.dtype)
        self.t.copy_(torch.where(zero, settled(integer_bits(low, high), zero), largest.log2()))
        self.clamp_()


class LSQWeight(FromValue, LSQ):
    """LSQ of a weight, k = 1; the first step is 2 mean|w| / sqrt(largest code)."""

    def _begin(self, x: Tensor) -> None:
        mean = summed(x.abs(), torch.Size(self.shape)) * (torch.Size(self.shape).numel() / x.numel())
        step = 2 * mean.to(self.t.dtype) * self._largest().rsqrt()
        self.t.copy_(settled(step.log2(), step == 0))
        self.clamp_()


class PACTData(FromData, RangeQuantizer):
    """PACT (Choi et al. 2018): clips at a trained number `a`, in (0, a], before quantizing to (0, ceil(log2 a), f); dq/da = 1[x >= a].

    Eval rounds a up to 2^i, which is where the frozen format saturates. The L2 term of a is `penalty`, with the factor `decay`.
    For values that can not be negative: raises ConfigError (PQ407) for others.
    """

    a: nn.Parameter
    bit_parameters = ("a",)
    overflows = ("SAT",)

    def __init__(self, shape: tuple[int, ...], width: int, *, decay: float = 1e-4, **keywords: Any) -> None:
        if keywords.get("signed") or not (keywords.get("non_negative") or keywords.get("signed") is False):
            raise ConfigError(Problem("PQ407", "PACT clips at 0: it is for values behind a ReLU", "use 'tqt' for this value"))
        super().__init__(shape, width, **keywords)
        self.a, self.decay = parameter(self.shape, 1.0), decay

    def bits(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        i = self._integer(self.a.detach())
        return i, self.width - self.k - i

    def penalty(self) -> Tensor | None:
        return self.decay * self.a.square().sum()

    def clamp_(self) -> None:
        with torch.no_grad():
            self.a.clamp_(2.0**-INTEGER_BITS_LIMIT, 2.0**INTEGER_BITS_LIMIT)

    def settle(self, observer: Observer) -> None:
        super().settle(observer)
        if not self._learning:
            with torch.no_grad():
                high = observer.range()[1].to(self.a)
                self.a.copy_(torch.where(high > 0, torch.minimum(high, self.a), self.a))

    def _integer(self, t: Tensor) -> Tensor:
        return integer_bits(torch.zeros_like(t), t)

    def _exponent(self, x: Tensor | None = None) -> Tensor:
        return self.a.detach().log2()

    def _take(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        self.k.copy_(k)
        self.a.copy_(i.exp2())

    def _value(self, x: Tensor) -> Tensor:
        i, f = self.bits()
        if not self.training:
            return quantize_value(x, self.k, i, f, self.rounding, self.overflow)
        clipped = torch.where(x >= self.a, self.a.to(x.dtype), x.clamp(min=0))
        return quantize_value(clipped, self.k, i, f, self.rounding, self.overflow, True, straight=True)
