"""The quantizer with a stored format, base of the calibrated one and what every quantizer becomes when frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pquant_fx.errors import CalibrationError, ConfigError, Problem
from pquant_fx.formats import evaluation_mode, overflow_mode, rounding_mode
from pquant_fx.graph.batch_correction import Pointwise
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.format_text import format_text
from pquant_fx.graph.functions import alike
from pquant_fx.quantize.fixed_point import EXPONENT_LIMIT
from pquant_fx.quantize.kernel import Bits, Grid, quantize_value
from pquant_fx.quantize.precision import check_precision, is_narrow
from pquant_fx.quantize.saturation import Saturation

__all__ = ["FixedQuantizer", "FormatBuffers"]


class FormatBuffers(Quantizer):
    """A quantizer that keeps numbers of its format in buffers, and whether they were set in the buffer `known`.

    The buffers may change shape when a format is set (a scalar placeholder becomes one entry a channel), so loading a
    state takes over the stored shapes. `calibrated` is a Python mirror of `known`: no synchronisation in forward.
    """

    known: Tensor
    names: tuple[str, ...] = ()

    def __init__(self, rounding: str, overflow: str, known: bool) -> None:
        super().__init__()
        self.rounding, self.overflow = rounding_mode(rounding), overflow_mode(overflow)
        self.register_buffer("known", torch.tensor(int(known)))
        self._calibrated = known

    @property
    def calibrated(self) -> bool:
        return self._calibrated

    def _store(self, name: str, value: Tensor) -> None:
        """In place where the shape allows it, so that captured graphs and flattened buffers keep their storage."""
        buffer: Tensor = getattr(self, name)
        if value.shape == buffer.shape:
            buffer.copy_(value)
        else:
            setattr(self, name, value.detach().to(buffer).clone())

    def snapshot(self) -> Callable[[], None]:
        """Remember the format now; the returned function brings it back."""
        state, known = {name: getattr(self, name).detach().clone() for name in self.names}, self.calibrated

        def restore() -> None:
            for name, value in state.items():
                self._store(name, value)
            self._mark(known)
            self._loaded()

        return restore

    def _mark(self, known: bool) -> None:
        self.known.fill_(int(known))
        self._calibrated = known

    def _need_calibration(self) -> None:
        if not self.calibrated:
            raise CalibrationError(
                Problem("PQ307", f"this {type(self).__name__} has no format yet", "call `model.calibrate(batches)`, or set a format")
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.names:
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor) and stored.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._calibrated = bool(self.known)
        self._loaded()

    def _loaded(self) -> None:
        """Called after a state was loaded."""


class FixedQuantizer(FormatBuffers):
    """q(x; k, i, f) with a stored format: numbers, or tensors that broadcast to the value (data: the batch axis has size 1).

    calibrated: False makes the numbers a placeholder; until a format is set the module passes its input through.
    saturates: False states that no value reaches the bounds (frozen biases), so that more than 24 bits are exact in
    float32 too; otherwise a wider format refuses float32 values (PQ306). Raises ConfigError (PQ306) for an impossible
    format or mode.
    """

    k: Tensor
    i: Tensor
    f: Tensor
    names = ("k", "i", "f")

    def __init__(
        self,
        k: Bits,
        i: Bits,
        f: Bits,
        rounding: str = "RND",
        overflow: str = "SAT",
        calibrated: bool = True,
        *,
        saturates: bool = True,
    ) -> None:
        super().__init__(rounding, overflow, calibrated)
        self.saturates = saturates
        self._simple: Saturation | None = None
        self._state: tuple[tuple[str, Tensor, int], ...] = ()
        self._kept: tuple[tuple[tuple[Tensor, int], ...], torch.dtype, Grid] | None = None
        bits = [b.detach().clone() if isinstance(b, Tensor) else torch.tensor(float(b)) for b in (k, i, f)]
        dtype = torch.float64 if any(b.dtype == torch.float64 for b in bits) else torch.float32
        for name, value in zip(self.names, self._checked(*(b.to(dtype) for b in bits))):
            self.register_buffer(name, value.clone())
        self._loaded()

    def set_format(self, k: Bits, i: Bits, f: Bits) -> None:
        """Give the quantizer another format, in place; it counts as calibrated from then on. Raises ConfigError (PQ306)."""
        bits = self._checked(*(torch.as_tensor(b).detach().to(self.f) for b in (k, i, f)))
        for name, value in zip(self.names, bits):
            shape: torch.Size = getattr(self, name).shape
            fits = value.dim() <= len(shape) and all(a in (1, b) for a, b in zip(reversed(value.shape), reversed(shape)))
            self._store(name, value.expand(shape) if fits else value)
        self._mark(True)
        self._loaded()

    def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.k, self.i, self.f

    def forward(self, x: Tensor) -> Tensor:
        """q(x), of x's shape; x itself while no format is set.

        Raises ConfigError (PQ306) when the widest format that saturates is more than x's dtype holds exactly.
        """
        if not self._calibrated:
            return x
        if (simple := self._scalar(x)) is not None:
            return simple(x)
        if self.saturates:
            check_precision(self, self._widest, self._magnitude, x)
        grid = None if torch.compiler.is_compiling() else self._grid(x)
        return quantize_value(x, self.k, self.i, self.f, self.rounding, self.overflow, self.training, grid=grid)

    @classmethod
    def together(cls, quantizers: Sequence[Self], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Values of one format as one vector."""
        formats = [q._scalar(x) if q.calibrated else None for q, x in zip(quantizers, values)]
        first = formats[0]
        if first is None or any(found != first for found in formats) or not alike(values):
            return super().together(quantizers, values)
        return first.together(values)

    def pointwise(self, x: Tensor, rectify: bool = False) -> Pointwise | None:
        """One format of a whole value, that has no negative values where a ReLU comes before; None also under the user's hooks."""
        if not self._calibrated or self._forward_hooks or self._forward_pre_hooks:
            return None
        simple = self._scalar(x)
        if simple is None or not rectify:
            return simple
        return simple.rectified if simple.low >= 0 else None

    def frozen(self, x: Tensor | None = None) -> FixedQuantizer:
        """The same format as a plain FixedQuantizer in eval mode, stochastic rounding replaced by its evaluation mode.

        Raises CalibrationError (PQ307) while no format is set.
        """
        self._need_calibration()
        made = FixedQuantizer(self.k, self.i, self.f, evaluation_mode(self.rounding), self.overflow, saturates=self.saturates)
        return made.to(self.f.device).eval()

    def _grid(self, x: Tensor) -> Grid | None:
        """The format's constants in the dtype that x is computed in, kept while nobody exchanges or edits the buffers.

        They cost more than quantizing a small value does. None under transforms and modes whose tensors must not be kept.
        """
        bits = (self.k, self.i, self.f)
        if torch.is_inference_mode_enabled() or any(torch._C._functorch.is_functorch_wrapped_tensor(b) or b.is_inference() for b in bits):
            return None
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        kept = self._kept
        if kept is None or kept[1] != dtype or any(a is not b or v != b._version for (a, v), b in zip(kept[0], bits)):
            with torch.no_grad():
                made = Grid.of(self.k.to(dtype), self.i.to(dtype), self.f.to(dtype), self.overflow)
            if type(made.low) is not Tensor:  # fake tensors, for example
                return made
            self._kept = kept = (tuple((b, b._version) for b in bits), dtype, made)
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_state": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._loaded()

    def _apply(self, *args: Any, **kwargs: Any) -> FixedQuantizer:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._loaded()
        return self

    def extra_repr(self) -> str:
        if not self.calibrated:
            return "not calibrated"
        return f"{format_text(*self.kif())}, {self.rounding}, {self.overflow}"

    def _loaded(self) -> None:
        self._simple, self._state = None, ()
        if self.f.is_meta:
            return
        bits = self.i + self.f
        self._widest, self._magnitude = (int((self.k + bits).max()), int(bits.max())) if bits.numel() else (0, 0)
        if self.f.numel() == 1:
            k, i, f = (int(b) for b in (self.k, self.i, self.f))
            self._simple = Saturation.of(k, i, f, self.rounding, self.overflow)
            self._state = tuple((name, b, b._version) for name, b in (("k", self.k), ("i", self.i), ("f", self.f)))

    def _scalar(self, x: Tensor) -> Saturation | None:
        """The format as numbers, if it is of that kind and x of the dtype for it."""
        if x.dtype != torch.float32 or is_narrow(x) or torch._C._are_functorch_transforms_active():
            return None
        return self._simple if self._unchanged() else None

    def _unchanged(self) -> bool:
        """Whether the buffers are those that were turned into numbers, and nobody wrote to them since."""
        if torch.compiler.is_compiling():
            return False
        now = self._buffers
        return all(now[name] is b and b._version == v for name, b, v in self._state)  # nn.Module's getattr is slow

    def _checked(self, k: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = torch.broadcast_shapes(k.shape, i.shape, f.shape)  # type: ignore[no-untyped-call]
        k, i, f = (t.expand(shape).clone() for t in (k, i.round(), f.round()))
        what = None
        if not bool(((k == 0) | (k == 1)).all()):
            what = "the sign bit k is neither 0 nor 1"
        elif self.overflow == "WRAP_SM" and bool(((k == 0) & (i + f > 0)).any()):
            what = "WRAP_SM is defined for signed formats only"
        elif not bool(((i.abs() <= EXPONENT_LIMIT) & (f.abs() <= EXPONENT_LIMIT)).all()):
            what = f"i or f is not a number within -{EXPONENT_LIMIT} .. {EXPONENT_LIMIT}"
        elif bool((k + i + f > 53).any()):
            what = "a format is wider than 53 bits, the most that float64 holds exactly"
        if what is not None:
            raise ConfigError(Problem("PQ306", what, "choose another format, or another overflow mode"))
        return k, i, f
