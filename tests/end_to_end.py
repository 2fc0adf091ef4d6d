"""From a user's model to frozen bits, and what has to hold there, for the end-to-end tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

import pquant_fx as pq
from pquant_fx.frozen import FrozenModel
from tests.structures import Structure

__all__ = ["BITS16", "assert_bits", "compiled", "error", "float_outputs", "probes", "trained"]

BITS16 = {"preset": "fixed8", "quantization_parameters": {"default_data_bits": 16, "default_weight_bits": 16}}


def compiled(case: Structure, config: Any, samples: int = 64) -> Any:
    return pq.compile(case.model(), config, case.inputs(samples))


def trained(model: Any, case: Structure, steps: int = 2, lr: float = 1e-3) -> Any:
    """A few steps of gradient descent on targets that do not matter."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.zeros(()))], lr=lr)
    for step in range(steps):
        loss = sum(v.square().mean() for v in _tensors(model(**case.inputs(24 + step))))
        optimizer.zero_grad()
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
        optimizer.step()
    return model.eval()


def probes(case: Structure, model: Any) -> list[dict[str, Tensor]]:
    """One batch of every kind of sample (ordinary, saturating, ties of the input's grid, far below its lsb), and one sample."""
    mixed = {}
    for name, x in case.inputs(17).items():
        quantizers = [m for n, m in model.graph_module.named_modules() if n == f"pq.{name}.quantizer"]
        f = float(quantizers[0].f.max()) if quantizers else 6.0
        ties = (torch.round(x * 2**f) + 0.5) * 2**-f
        mixed[name] = torch.cat([x, x * 300, ties, x * 3e-3])
    return [mixed, case.inputs(1)]


def assert_bits(model: Any, case: Structure) -> FrozenModel:
    """compiled.eval() == frozen == integer == onnxruntime == qonnx, on every kind of input. Returns the frozen network.

    Where 24 bits do not hold every sum, the compiled network is compared in float64 (and its weights are then rounded there).
    """
    frozen = model.freeze()
    targets = ("integer", "onnx", "qonnx") if frozen.dtype == torch.float32 else ("integer", "onnx")
    if frozen.dtype == torch.float64:
        model = copy.deepcopy(model).double()
        frozen = model.freeze()
    for inputs in probes(case, model):
        with torch.no_grad():
            expected, spec = tree_flatten(model.eval()(**{n: x.to(frozen.dtype) for n, x in inputs.items()}))
        got, frozen_spec = tree_flatten(frozen(**inputs))
        assert spec == frozen_spec
        for a, b in zip(_tensors(expected), _tensors(got), strict=True):
            assert torch.equal(a.double(), b.double()), f"eval and frozen differ by {(a.double() - b.double()).abs().max()}"
        report = frozen.verify(inputs, targets=targets)
        assert report.ok, str(report)
    return frozen


def float_outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return _tensors(model(**{n: x.double() for n, x in inputs.items()}))


def error(expected: list[Tensor], got: Any) -> float:
    """The largest root-mean-square error of an output, relative to its largest value."""
    worst = 0.0
    for a, b in zip(expected, _tensors(got), strict=True):
        assert a.shape == b.shape
        worst = max(worst, float((a - b.double()).square().mean().sqrt() / a.abs().max()))
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    return [v for v in tree_leaves(outputs) if isinstance(v, Tensor)]
