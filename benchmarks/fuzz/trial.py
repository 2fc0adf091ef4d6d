"""One random network through compile, a training step, freeze, and the engines."""

from __future__ import annotations

import copy
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from benchmarks.fuzz.networks import draw_network
from benchmarks.fuzz.settings import draw_config

__all__ = ["ENGINES", "Outcome", "trial"]

Engine = Callable[[Any, Tensor], str]
"""Takes the frozen network and samples; returns what differs, "" for nothing. Raises PQuantError where the engine refuses."""


@dataclass(frozen=True)
class Outcome:
    """kind: exact, refused (by the codes in `detail`), different, or crashed; stage: where."""

    seed: int
    kind: str
    stage: str = ""
    detail: str = ""


def trial(seed: int, engine: str = "onnx") -> Outcome:
    """Network `seed`, in the modes of `engine`: torch against the integer interpreter, plain ONNX, and the engine itself."""
    stage = "compile"
    try:
        network, shape = draw_network(seed, most=10 if engine == "onnx" else 6)
        torch.manual_seed(seed)
        x = torch.randn(32, *shape)
        model = pq.compile(network, draw_config(seed, engine, network.layers), x)
        stage = "training"
        _train(model, x)
        stage = "freeze"
        frozen = model.freeze()
        if frozen.dtype == torch.float64:  # float32 does not hold every sum: training in it is not what the circuit computes
            model = copy.deepcopy(model).double()
            frozen = model.freeze()
        probes = _probes(model, x)
        stage = "torch"
        with torch.no_grad():
            pairs = zip(tree_leaves(model(probes.to(frozen.dtype))), tree_leaves(frozen(probes)), strict=True)
        if not all(torch.equal(a.double(), b.double()) for a, b in pairs):
            return Outcome(seed, "different", stage, "compiled.eval() and frozen")
        for stage in dict.fromkeys(("onnx", engine)):
            if found := ENGINES[stage](frozen, probes):
                return Outcome(seed, "different", stage, found)
        return Outcome(seed, "exact")
    except pq.PQuantError as error:
        return Outcome(seed, "refused", stage, " ".join(sorted({p.code for p in error.problems})))
    except Exception as error:  # a crash is a finding, like a difference
        return Outcome(seed, "crashed", stage, f"{type(error).__name__}: {error}")


def _train(model: Any, x: Tensor) -> None:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        loss = sum(v.square().mean() for v in tree_leaves(model(x)))
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
    model.eval()


def _probes(model: Any, x: Tensor) -> Tensor:
    """Ordinary samples, saturating ones, ties of the input's grid, and values far below its lsb."""
    quantizer = next((m for n, m in model.graph_module.named_modules() if n == "pq.x.quantizer"), None)
    f = float(quantizer.f.max()) if quantizer is not None else 6.0
    return torch.cat([x[:12], 300 * x[:6], (torch.round(x[:12] * 2**f) + 0.5) * 2**-f, 3e-3 * x[:6]])


def _agrees(frozen: Any, x: Tensor, targets: Sequence[str], io_type: str = "io_parallel") -> str:
    report = frozen.verify(x, targets=tuple(targets), io_type=io_type)
    return "" if report.ok else " ".join(str(report).split())


def _onnx(frozen: Any, x: Tensor) -> str:
    frozen.to_onnx()  # a refusal is one, not a difference
    return _agrees(frozen, x, ("integer", "onnx"))


def _hls4ml(frozen: Any, x: Tensor) -> str:
    from pquant_fx.lower.hls4ml.convert import check

    problems = check(frozen.to_qonnx())
    if problems:
        raise pq.LoweringError(problems)
    return _in_child(lambda: _agrees(frozen, x, ("hls4ml",)))


def _in_child(function: Callable[[], str]) -> str:
    """What the function returns, from a process of its own: an assertion in a simulated circuit ends the process that it runs in."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function()))
    child.start()
    child.join()
    return str(receiver.recv()) if receiver.poll() else f"the process ended with {child.exitcode}"


def _rtl(frozen: Any, x: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        report = frozen.to_rtl(Path(folder) / "rtl", x).simulate(samples=20, tools=("iverilog",))
    return "" if report.ok else " ".join(str(report).split())


ENGINES: dict[str, Engine] = {"onnx": _onnx, "hls4ml": _hls4ml, "rtl": _rtl}
