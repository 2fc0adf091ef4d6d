"""Files that Brevitas itself wrote, and files of ours: read back, they compute the same bits in every engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pquant_fx as pq
from pquant_fx.lower.hls4ml.convert import to_hls4ml
from pquant_fx.lower.onnx.qonnx import to_qonnx
from tests.foreign_files import run_cleaned
from tests.frozen_graphs import double_reference, stress_values
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net, residual_net
from tests.models import MLP, MultiIO, ResidualDigits

FILES = Path(__file__).parent / "fixtures" / "brevitas"
EXACT = ("mlp", "residual", "per_channel")


def samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FILES / f"{name}.npz") as held:
        return held["x"], held["y"]


# ---- Brevitas
@pytest.mark.parametrize("name", EXACT)
def test_a_file_of_brevitas_computes_what_brevitas_and_qonnx_compute(name: str) -> None:
    import onnx

    frozen = pq.from_qonnx(FILES / f"{name}.onnx")
    x, y = samples(name)
    given = torch.from_numpy(x)
    assert np.array_equal(frozen(given).numpy(), y)
    assert frozen.verify(given, targets=("integer", "onnx", "qonnx")).ok
    shape = x.shape[1:]
    stress = np.concatenate([stress_values((40, *shape), 6, 4.0), stress_values((40, *shape), 5, 0.5, 1)])
    expected = run_cleaned(onnx.load(FILES / f"{name}.onnx"), stress)[0]
    assert np.array_equal(frozen(torch.from_numpy(stress)).numpy(), expected)
    assert np.array_equal(frozen.integer(torch.from_numpy(stress)).numpy(), expected.astype(np.float64))


@pytest.mark.hls
@pytest.mark.parametrize("name", EXACT)
def test_a_file_of_brevitas_reaches_hls4ml(name: str, tmp_path: Path) -> None:
    x, y = samples(name)
    frozen = pq.from_qonnx(FILES / f"{name}.onnx")
    project = frozen.to_hls4ml(tmp_path / "read")
    project.compile()
    assert np.array_equal(project.predict(x), y)
    assert to_hls4ml(FILES / f"{name}.onnx", tmp_path / "as_it_is")  # the file itself serves as well


@pytest.mark.parametrize("name", EXACT)
def test_what_was_read_from_brevitas_is_written_strictly_and_read_again(name: str, tmp_path: Path) -> None:
    frozen = pq.from_qonnx(FILES / f"{name}.onnx")
    frozen.to_qonnx(tmp_path / "ours.onnx", strict=True)
    again = pq.from_qonnx(tmp_path / "ours.onnx")
    x, y = samples(name)
    assert np.array_equal(again(torch.from_numpy(x)).numpy(), y)
    again.to_qonnx(tmp_path / "again.onnx", strict=True)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "ours.onnx").read_bytes()
    assert again.ebops().total == frozen.ebops().total > 0


@pytest.mark.parametrize("name", ["default", "default_per_channel"])
def test_scales_that_are_any_real_number_are_refused_all_at_once(name: str) -> None:
    """A first Brevitas script: the input, two layers of weights, two activations, float biases."""
    with pytest.raises(pq.LoweringError) as caught:
        pq.from_qonnx(FILES / f"{name}.onnx")
    problems = caught.value.problems
    assert {p.code for p in problems} == {"PQ202"}
    assert {p.place.node for p in problems} >= {"node__symbolic", "node__symbolic_1", "node__symbolic_3"}
    assert all("FixedPoint" in p.remedy for p in problems)


def test_names_formats_and_lines_are_those_of_the_file() -> None:
    frozen = pq.from_qonnx(FILES / "per_channel.onnx")
    text = frozen.text()
    assert frozen.input_names == ("x",)
    assert "per_channel.onnx:" in text
    conv = frozen.graph_module.get_submodule("pq.node__symbolic_1")
    assert conv.f.shape == (6, 1, 1, 1)
    assert len(set(conv.f.reshape(-1).tolist())) > 1  # a scale of its own for every channel
    assert conv.overflow == "SAT_SYM"


# ---- ours
# an Identity is left out; a mean over a number that is no power of two comes back as the sum and the product that it is
IN_OTHER_NODES = ("whole slice", "mean of six", "mean of five channels", "windows of three", "windows of six")


@pytest.mark.parametrize("rounding", ["RND", "RND_CONV", "TRN", "RND_INF", "RND_MIN_INF"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_file_of_ours_is_written_again_byte_for_byte(name: str, rounding: str) -> None:
    gm = operator_net(name, 6, rounding)
    file = to_qonnx(gm)
    read = pq.from_qonnx(file)
    if name not in IN_OTHER_NODES:
        assert to_qonnx(read.graph_module).SerializeToString(deterministic=True) == file.SerializeToString(deterministic=True)
    inputs = operator_inputs(name, 6)
    for a, b in zip(double_reference(gm, *inputs), double_reference(read.graph_module, *inputs), strict=True):
        assert np.array_equal(a, b)


def test_a_residual_network_of_ours_comes_back(tmp_path: Path) -> None:
    file = to_qonnx(residual_net(), tmp_path / "net.onnx", strict=True)
    read = pq.from_qonnx(tmp_path / "net.onnx")
    assert to_qonnx(read.graph_module, strict=True).SerializeToString(deterministic=True) == file.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("model", "shapes"), [(MLP, {"input": (16,)}), (MultiIO, {"tracks": (6,), "towers": (4,)}), (ResidualDigits, {"x": (1, 8, 8)})]
)
@pytest.mark.parametrize("preset", ["fixed8", "fixed_per_weight"])
def test_whole_models_come_back(model: type, shapes: dict[str, tuple[int, ...]], preset: str) -> None:
    torch.manual_seed(0)
    inputs = [3 * torch.randn(48, *shape) for shape in shapes.values()]
    frozen = pq.compile(model(), preset, tuple(inputs)).freeze()
    read = pq.from_qonnx(frozen.to_qonnx())
    for a, b in zip(torch.utils._pytree.tree_leaves(frozen(*inputs)), torch.utils._pytree.tree_leaves(read(*inputs)), strict=True):
        assert torch.equal(a.double(), b.double())
    assert read.verify(tuple(inputs), targets=("integer", "onnx", "qonnx")).ok
    assert read.ebops().total == frozen.ebops().total


def test_tables_come_back() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3), torch.nn.Sigmoid())
    x = torch.randn(200, 4)
    frozen = pq.compile(net, "fixed8", x).freeze()
    file = frozen.to_qonnx()
    read = pq.from_qonnx(file)
    assert torch.equal(read(x), frozen(x))
    assert read.to_qonnx().SerializeToString(deterministic=True) == file.SerializeToString(deterministic=True)
