"""The whole way in one call: a residual network from PyTorch to bit-exact firmware sources, on real data.

`make demo` and `pquant-fx demo` run it; what it writes lies in one directory, and the RTL in one beside it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant_fx.api import compile
from pquant_fx.compiled import CompiledModel
from pquant_fx.demo_network import Digits, ResidualNet, load_digits
from pquant_fx.errors import ExtraMissingError
from pquant_fx.frozen import FrozenModel
from pquant_fx.lower.rtl.adapter import require_alkaid
from pquant_fx.lower.rtl.synthesis import Synthesis
from pquant_fx.lower.rtl.tools import require_tool
from pquant_fx.lower.verify import VerifyReport
from pquant_fx.report.bundle import bundle
from pquant_fx.report.page import Section
from pquant_fx.report.tables import GraphTable, graph_table

__all__ = ["DemoResult", "run", "train_float"]

ENGINES = ("integer", "onnx", "qonnx", "hls4ml")
IO_TYPES = ("io_parallel", "io_stream")
FLOAT_EPOCHS, EPOCHS, BATCH, RATE, SPARSITY = 40, 30, 64, 1e-2, 0.5  # a third of the compressed epochs is fine-tuning
_TABLE_WIDTH = 130
CONFIG: dict[str, Any] = {
    "preset": "fixed8",
    "training_parameters": {"batch_size": BATCH, "learning_rate": 2e-3},
    "pruning_parameters": {"pruning_method": "magnitude", "sparsity": SPARSITY, "scope": "global"},
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. Accuracies are shares of the test set; `reports`: one comparison of engines per io type; synthesis:
    None where a tool for it is missing, or it was not asked for.
    """

    float_accuracy: float
    accuracy: float
    sparsity: float
    reports: tuple[VerifyReport, ...]
    table: GraphTable
    output: Path
    seconds: float
    synthesis: Synthesis | None = None

    @property
    def ok(self) -> bool:
        """Whether every engine ran and agreed on every bit of every test image."""
        return all(report.ok for report in self.reports)

    def __str__(self) -> str:
        change = 100 * (self.accuracy - self.float_accuracy)
        verdict = "every engine agrees on every bit" if self.ok else "ENGINES DIFFER"
        hardware = "" if self.synthesis is None else f"; {self.synthesis.total.lut:,} LUT, {self.synthesis.total.ff:,} FF"
        return (
            f"accuracy {self.float_accuracy:.2%} float, {self.accuracy:.2%} with 8 bits and {self.sparsity:.0%} of the weights removed "
            f"({change:+.2f} points); {verdict}{hardware}; {self.seconds:.0f} s; results in {self.output}"
        )


def run(
    output: str | os.PathLike[str] = "build/demo",
    epochs: int | None = None,
    engines: Sequence[str] = ENGINES,
    io_types: Sequence[str] = IO_TYPES,
    say: Callable[[object], None] | None = None,
    synthesis: bool = True,
) -> DemoResult:
    """Train, compile, train compressed, freeze, verify on all 500 test images, write the bundle to `output`, synthesise.

    epochs: of the compressed training (default 30), the float training in proportion. engines: see `FrozenModel.verify`;
    hls4ml runs once per io type. say: where progress goes, by default printed. synthesis: write the RTL to `<output>_rtl` and count
    its LUTs with yosys, where alkaid and yosys are installed. Takes one to four minutes on two cores, synthesis as long again.
    Raises ExtraMissingError (PQ503) without scikit-learn, OutputError (PQ505, PQ506) when `output` is not ours to replace.
    """
    with _one_thread():
        return _run(Path(output), epochs, engines, io_types, say if say is not None else _say, synthesis)


def _run(
    output: Path,
    epochs: int | None,
    engines: Sequence[str],
    io_types: Sequence[str],
    tell: Callable[[object], None],
    synthesis: bool,
) -> DemoResult:
    start = time.perf_counter()
    count = EPOCHS if epochs is None else epochs
    data = load_digits()

    tell(f"[1/7] float training on {len(data.x)} handwritten digits")
    net = train_float(data, math.ceil(count * FLOAT_EPOCHS / EPOCHS))
    float_accuracy = accuracy(net, data)
    tell(f"      accuracy {float_accuracy:.2%}")

    tell("[2/7] compile to 8-bit fixed point")
    stages = {"epochs": count - count // 3, "fine_tuning_epochs": count // 3}
    model = compile(net, {**CONFIG, "training_parameters": {**CONFIG["training_parameters"], **stages}}, data.x[:256])
    tell(f"      accuracy {accuracy(model, data):.2%} before any training")

    tell(f"[3/7] train with fixed-point weights and activations while {SPARSITY:.0%} of the weights are removed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        history = model.fit((data.x, data.y), validation=(data.x_test, data.y_test))
    tell(f"      accuracy {history.last.metrics['accuracy']:.2%}, sparsity {history.last.sparsity:.1%}")

    tell("[4/7] freeze: constants, exact types")
    frozen = freeze(model, data)
    table = graph_table(frozen.graph_module, frozen.formats, "residual network on handwritten digits", frozen.ebops())
    tell(table)

    reports = _verified(frozen, data, engines, io_types, tell)
    result = DemoResult(float_accuracy, accuracy(frozen, data), table.sparsity, reports, table, output, 0.0)

    tell(f"[6/7] write the bundle: QONNX, plain ONNX, {'hls4ml project, ' if 'hls4ml' in engines else ''}golden vectors, report")
    sections = [Section("Training", str(history)), *(Section("Engines", str(report)) for report in reports)]
    bundle(frozen, output, data.x_test[:64], title="pquant_fx demo", sections=sections, overwrite=True, hls4ml="hls4ml" in engines)
    made = _synthesized(frozen, data, output.with_name(f"{output.name}_rtl"), tell) if synthesis else None
    result = replace(result, seconds=time.perf_counter() - start, synthesis=made)
    tell(f"      results lie in {result.output}: read report.html, or report.txt")
    return result


def _synthesized(frozen: FrozenModel, data: Digits, folder: Path, tell: Callable[[object], None]) -> Synthesis | None:
    """The counts of the whole network with every position of it in hardware, or None with a line that says what is missing."""
    tell("[7/7] RTL with one module a layer, counted by yosys")
    try:
        require_alkaid()
        require_tool("yosys", "counting LUTs")
        found = frozen.synthesize(folder, data.x_test, structure="layers", overwrite=True)
        found.plot(folder / "stages.png")
    except ExtraMissingError as error:
        tell(f"      skipped: {error.problems[0].what}: {error.remedy}")
        return None
    tell(found)
    tell(f"      {found.summary}; picture: {folder / 'stages.png'}")
    return found


def train_float(data: Digits, epochs: int) -> nn.Module:
    """Plain PyTorch: Adam with cosine decay, fixed seed. Returns the network in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResidualNet()
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(data.x) / BATCH))
        net.train()
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(data.x)), BATCH):
                loss = F.cross_entropy(net(data.x[batch]), data.y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return net.eval()


def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of test images that `model` gets right; its mode is put back."""
    mode = model.training
    with torch.no_grad():
        found = float((model.eval()(data.x_test).argmax(1) == data.y_test).double().mean())
    model.train(mode)
    return found


def freeze(model: CompiledModel, data: Digits) -> FrozenModel:
    """The finished network, its formats calibrated once more: training moved the ranges that they were taken from."""
    images: Tensor = data.x
    return model.calibrate(images).freeze()


def _verified(
    frozen: FrozenModel, data: Digits, engines: Sequence[str], io_types: Sequence[str], tell: Callable[[object], None]
) -> tuple[VerifyReport, ...]:
    tell(f"[5/7] compare engines on all {len(data.x_test)} test images, bit for bit")
    reports = []
    for n, io_type in enumerate(io_types):
        chosen = tuple(engines) if n == 0 else tuple(e for e in engines if e == "hls4ml")
        if chosen:
            reports.append(frozen.verify(data.x_test, targets=chosen, io_type=io_type))
            tell(reports[-1])
    return tuple(reports)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Float sums depend on how they are shared out: with one thread every machine trains the same network, and faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _say(what: object) -> None:
    from rich.console import Console

    screen = Console(highlight=False)
    if isinstance(what, GraphTable) and screen.width >= _TABLE_WIDTH:
        screen.print(what)
    else:
        print(what.to_text() if isinstance(what, GraphTable) else what, flush=True)
