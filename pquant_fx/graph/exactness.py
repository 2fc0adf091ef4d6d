"""The numeric check of passes that claim to change nothing: results before and after, in float64, in eval and in train.

Dropout is off in both; running statistics are updated in copies. A pass may reorder sums (folding a scale into a weight),
so equality is asked to 1e-9 of the largest value, which float64 leaves room for and no change of meaning survives. A
`forward` that fixes float32 by itself is run as it is, and asked to agree to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten

from pquant_fx.errors import PassError, Place, Problem
from pquant_fx.graph.dialect import DROPOUTS

__all__ = ["TOLERANCE", "Examples", "check_exact", "difference", "lacks_variance", "run_isolated", "run_precisely"]

Examples = Sequence[Any]
TOLERANCE = {True: 1e-9, False: 1e-4}
"""Relative difference that rounding alone explains, in float64 (True) and in the model's own type (False)."""


def check_exact(gm: GraphModule, examples: Examples, name: str, modes: Sequence[bool] = (False, True)) -> Callable[[], None]:
    """Remember the results now; the returned function compares them with the results then, in eval (False) and train (True).

    It raises PassError (PQ604) that names the pass, the mode and the largest difference.
    """
    before = {mode: _attempt(gm, examples, mode) for mode in modes}

    def compare() -> None:
        for mode in modes:
            found = before[mode]
            if found is None:  # batch statistics of one sample: nothing to compare in this mode
                continue
            result, double = found
            worst = difference(result, run_isolated(gm, examples, mode, double))
            if not worst <= TOLERANCE[double]:
                what = f"the pass '{name}' claims to be exact but changes results in {'train' if mode else 'eval'} mode by {worst:.3g}"
                raise PassError(Problem("PQ604", what, "mend the pass, or declare exact=False", Place(name)))

    return compare


def run_precisely(model: nn.Module, examples: Examples, training: bool) -> tuple[Any, bool]:
    """The results of `model` in float64 and True; or, where `forward` fixes another type, as it is and False."""
    try:
        return run_isolated(model, examples, training), True
    except RuntimeError as error:
        if "dtype" not in str(error) and "scalar type" not in str(error):
            raise
        return run_isolated(model, examples, training, double=False), False


def run_isolated(model: nn.Module, examples: Examples, training: bool, double: bool = True) -> Any:
    """The results of `model` with dropout off, in float64 if `double`, without touching its parameters, buffers or mode."""
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():  # each module once: swapped in under two names, a tensor would not be put back
        for name, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None:
                copied = t.detach().to(torch.float64 if double and t.is_floating_point() else t.dtype, copy=True)
                tensors[f"{path}.{name}" if path else name] = copied
    inputs = tuple(x.double() if double and isinstance(x, Tensor) and x.is_floating_point() else x for x in examples)
    with torch.no_grad(), _mode(model, training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return functional_call(model, tensors, inputs, tie_weights=False, strict=False)


def difference(a: Any, b: Any) -> float:
    """Largest difference of two nested results relative to the largest magnitude; infinite when structures differ."""
    flat_a, spec_a = tree_flatten(a)
    flat_b, spec_b = tree_flatten(b)
    if spec_a != spec_b:
        return float("inf")
    worst = 0.0
    for x, y in zip(flat_a, flat_b):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            worst = max(worst, 0.0 if x == y else float("inf"))
        elif x.shape != y.shape:
            return float("inf")
        elif x.numel() and not torch.equal(x, y):
            scale = max(float(x.double().abs().max()), 1e-30)
            gap = float((x.double() - y.double()).abs().max()) / scale
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _attempt(gm: GraphModule, examples: Examples, training: bool) -> tuple[Any, bool] | None:
    try:
        return run_precisely(gm, examples, training)
    except ValueError as error:
        if training and lacks_variance(error):
            return None
        raise


def lacks_variance(error: ValueError) -> bool:
    """Whether a BatchNorm in train refused a batch of one value per channel; torch names no class for it, only this text."""
    return "more than 1 value per channel" in str(error)


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into a mode with dropout off, and every module back afterwards."""
    modes = {m: m.training for m in model.modules()}
    try:
        for m in modes:
            m.training = training and not isinstance(m, DROPOUTS)
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
