"""The file for FINN: exact by QONNX's reading and by that of FINN's thresholds; what FINN does not take is refused before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.lower.onnx.qonnx import QUANT_DOMAIN
from pquant_fx.lower.onnx.run import run_qonnx
from tests.models import MLP, Bottleneck

FINN = {"preset": "fixed8", "joins": {"policy": "shared"}}


class Thresholds:
    """FINN's reading, in numpy: a data Quant is low + the number of thresholds (n + 1/2) scale that x reaches, times scale."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}

    def quant(self, node: Any, x: np.ndarray) -> np.ndarray:
        from onnx import helper

        scale, _, bits = (self.held[name] for name in node.input[1:])
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        low = -(2 ** (bits - 1)) + given["narrow"] if given["signed"] else np.zeros(())
        high = 2 ** (bits - given["signed"]) - 1
        steps = np.arange(low, high) + 0.5
        return (low + (x[..., None] >= steps * scale).sum(-1)) * scale


def every_tie_up(model: Any) -> Any:
    """The same file for qonnx with half added and rounded down: thresholds in another form, exact in float64."""
    from onnx import helper, numpy_helper

    made = type(model)()
    made.CopyFrom(model)
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    nodes = []
    for node in made.graph.node:
        if node.op_type == "Quant" and node.input[0] not in held:
            half = f"{node.name}.tie"
            made.graph.initializer.append(numpy_helper.from_array(held[node.input[1]] / 2, half))
            nodes.append(helper.make_node("Add", [node.input[0], half], [f"{half}_sum"], half))
            shape = next(v for v in (*made.graph.value_info, *made.graph.input, *made.graph.output) if v.name == node.output[0])
            info = type(shape)()
            info.CopyFrom(shape)
            info.name = f"{half}_sum"
            made.graph.value_info.append(info)
            node.input[0] = f"{half}_sum"
            next(a for a in node.attribute if a.name == "rounding_mode").s = b"FLOOR"
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


class Residual(nn.Module):
    """Stem, a block with an identity shortcut, one with a 1x1 convolution as shortcut, max-pool, global mean, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block1, self.block2 = Bottleneck(4, 4), Bottleneck(4, 6, 2)
        self.pool, self.mean, self.head = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        return self.head(self.mean(self.pool(self.block2(self.block1(x)))).flatten(1))


@pytest.mark.parametrize(("model", "sample"), [(MLP(), (16,)), (Residual(), (1, 8, 8))])
def test_both_readings_of_the_file_give_our_bits(model: nn.Module, sample: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, *sample)
    frozen = pq.compile(model, FINN, x).freeze()
    file = frozen.to_finn()
    (placeholder,) = [n for n in frozen.graph_module.graph.nodes if n.op == "placeholder"]
    quantizer = frozen.graph_module.get_submodule(str(next(iter(placeholder.users)).target))
    on_grid = quantizer(torch.cat([x, 4 * x[:16]]))
    expected = frozen(on_grid).numpy()
    given = on_grid.numpy()
    assert np.array_equal(run_qonnx(file, [given])[0], expected)
    assert np.array_equal(run_qonnx(every_tie_up(file), [given])[0], expected)
    off_grid = torch.cat([x, 3 * x])
    assert np.array_equal(run_qonnx(file, [off_grid.numpy()])[0], frozen(off_grid).numpy())


def test_thresholds_as_finn_computes_them() -> None:
    """Each activation's thresholds, on the very values that reach it."""
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    frozen = pq.compile(MLP(), FINN, x).freeze()
    file = frozen.to_finn()
    reading = Thresholds(file)
    data = [n for n in file.graph.node if n.op_type == "Quant" and n.input[0] not in reading.held]
    more = type(file)()
    more.CopyFrom(file)
    known = {v.name: v for v in (*file.graph.value_info, *file.graph.input, *file.graph.output)}
    wanted = [name for n in data for name in (n.input[0], n.output[0]) if name not in {i.name for i in file.graph.input}]
    present = {o.name for o in more.graph.output}
    more.graph.output.extend(known[name] for name in wanted if name not in present)
    kept = [v for v in more.graph.value_info if v.name not in wanted]
    del more.graph.value_info[:]
    more.graph.value_info.extend(kept)
    values = dict(zip((o.name for o in more.graph.output), run_qonnx(more, [x.numpy()])))
    values[file.graph.input[0].name] = x.numpy()
    assert len(data) >= 3
    for node in data[1:]:
        before, after = values[node.input[0]].astype(np.float64), values[node.output[0]]
        assert np.array_equal(reading.quant(node, before), after)


def test_what_stands_in_the_file() -> None:
    torch.manual_seed(0)
    frozen = pq.compile(Residual(), FINN, torch.randn(32, 1, 8, 8)).freeze()
    file = frozen.to_finn()
    weights = {t.name for t in file.graph.initializer}
    made_by = {o: n for n in file.graph.node for o in n.output}
    assert {n.domain for n in file.graph.node} == {"", QUANT_DOMAIN}
    assert all(len(n.input) == 2 for n in file.graph.node if n.op_type == "Conv")
    assert "GlobalAveragePool" in {n.op_type for n in file.graph.node}
    for node in file.graph.node:
        if node.op_type == "Quant" and node.input[0] not in weights:
            (mode,) = [a.s for a in node.attribute if a.name == "rounding_mode"]
            (signed,) = [a.i for a in node.attribute if a.name == "signed"]
            source = made_by.get(node.input[0])
            assert mode == b"ROUND"
            assert signed or source.op_type == "Relu"
            assert not signed or source is None or source.op_type != "Relu"
    readers = [name for n in file.graph.node for name in n.input]
    assert all(readers.count(n.output[0]) == 1 for n in file.graph.node if n.op_type == "Quant" and n.input[0] in weights)


def test_the_file_survives_qonnx_clean_up() -> None:
    from tests.foreign_files import run_cleaned

    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8)
    frozen = pq.compile(Residual(), FINN, torch.randn(32, 1, 8, 8)).freeze()
    assert np.array_equal(run_cleaned(frozen.to_finn(), x.numpy())[0], frozen(x).numpy())


CONFIGS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "joins of different scales": ({"preset": "fixed8"}, {"PQ205"}),
    "wide values": ({**FINN, "quantization_parameters": {"default_data_bits": 12}}, {"PQ205"}),
    "rounding": ({**FINN, "quantization_parameters": {"round_mode": "RND_CONV"}}, {"PQ207"}),
    "wrapping": ({**FINN, "quantization_parameters": {"overflow_mode_data": "WRAP"}}, {"PQ207"}),
    "weights of several widths": ({**FINN, "quantization_parameters": {"granularity": "per_weight"}}, {"PQ205"}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_formats_that_finn_does_not_take_are_refused_before_training(case: str) -> None:
    config, codes = CONFIGS[case]
    torch.manual_seed(0)
    report = pq.check(Residual(), torch.randn(32, 1, 8, 8), target="finn", config=config)
    errors = [p for p in report.problems if p.severity == "error"]
    assert {p.code for p in errors} - {"PQ303"} == codes
    assert all(p.place.module is not None and p.remedy for p in errors)
    assert len(errors) > 1  # all at once, not the first


def test_operators_that_finn_does_not_take_are_refused_together() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(4, 4, 2, 2)
            self.pool = nn.AvgPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.pool(self.up(torch.relu(self.a(x)))))

    report = pq.check(Odd(), torch.randn(16, 4, 8, 8), target="finn", config=FINN)
    found = {(p.code, p.place.module) for p in report.problems if p.severity == "error"}
    assert {("PQ202", "a"), ("PQ201", "up"), ("PQ202", "pool")} <= found


def test_a_network_that_finn_takes_has_no_problems() -> None:
    assert pq.check(Residual(), torch.randn(16, 1, 8, 8), target="finn", config=FINN).ok
