"""What the hls4ml importer accepts, refuses and writes; nothing here compiles C++ (see test_hls4ml_bits.py)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pquant_fx.errors import ConfigError, ExtraMissingError, LoweringError, OutputError
from pquant_fx.formats import FixedFormat
from pquant_fx.lower.fixed_point_numpy import quantize_array
from pquant_fx.lower.hls4ml.convert import check, to_hls4ml
from pquant_fx.lower.hls4ml.ports import Port
from pquant_fx.lower.hls4ml.ranges import fraction_bits
from tests import hls4ml_models
from tests.hls4ml_zoo import QONNX, File


def small(edit: Callable[[File, str], str] | None = None, shape: tuple[int, ...] = (4,)) -> onnx.ModelProto:
    """An input quantizer and one more operation, a linear layer by default."""
    g = File()
    x = g.half_up(g.input("x", *shape), "x.quantizer", 3, 8, guard=True)
    return g.model(edit(g, x) if edit else g.linear(x, "fc", 4, 2))


Edit = Callable[[File, str], str]
IMAGE = (2, 4, 4)
REFUSED: dict[str, tuple[str, str, tuple[int, ...], str, Edit]] = {
    "unknown operator": ("PQ201", "erf", (4,), "io_parallel", lambda g, x: g.node("Erf", [x], "erf")),
    "product of values": ("PQ202", "mm", (4, 4), "io_stream", lambda g, x: g.node("MatMul", [x, x], "mm")),
    "mean over nine": ("PQ202", "p", (2, 3, 3), "io_parallel", lambda g, x: g.pool(x, "p", "AveragePool", 3, 3)),
    "scale": ("PQ202", "q", (4,), "io_parallel", lambda g, x: g.quant(x, "q", np.log2(3), 8)),
    "division by three": ("PQ202", "d", (4,), "io_parallel", lambda g, x: g.node("Div", [x, g.constant(3.0)], "d")),
    "broadcast": ("PQ202", "a", (4,), "io_parallel", lambda g, x: g.node("Add", [x, g.constant(np.ones((3, 4)))], "a")),
    "batch moved": ("PQ202", "t", (4, 4), "io_parallel", lambda g, x: g.node("Transpose", [x], "t", perm=[1, 0, 2])),
    "pad with ones": (
        "PQ202", "p", (4,), "io_parallel",
        lambda g, x: g.node("Pad", [x, g.constant([0, 1, 0, 1], np.int64), g.constant(1.0)], "p"),
    ),
    "wrap_sm": ("PQ207", "q", (4,), "io_parallel", lambda g, x: g.fixed(x, "q", 1, 1, 2, "RND", "WRAP_SM")),
    "one signed bit": ("PQ207", "q", (4,), "io_parallel", lambda g, x: g.quant(x, "q", 1, 1)),
    "rounding up": ("PQ207", "q", (4,), "io_parallel", lambda g, x: g.quant(x, "q", 1, 4, mode="CEIL")),
    "formats of pixels": ("PQ205", "q", (1, 1, 2), "io_stream", lambda g, x: g.fixed(x, "q", 1, 1, [[[[1, 2]]]], "RND", "SAT")),
    "nan weight": ("PQ305", "mm", (4,), "io_parallel", lambda g, x: g.node("MatMul", [x, g.constant(np.full((4, 2), np.nan))], "mm")),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_exact_is_refused_with_code_and_node(case: str, tmp_path: Path) -> None:
    code, node, shape, io_type, edit = REFUSED[case]
    model = small(edit=edit, shape=shape)
    with pytest.raises(LoweringError) as error:
        to_hls4ml(model, tmp_path / "project", io_type=io_type)
    assert [(p.code, p.place.node) for p in error.value.problems] == [(code, node)]
    assert error.value.remedy
    assert check(model, io_type) == list(error.value.problems)
    assert list(tmp_path.iterdir()) == []


def test_all_nodes_are_listed_at_once() -> None:
    g = File()
    x = g.half_up(g.input("x", 4), "x.quantizer", 3, 8)
    y = g.node("Erf", [x], "first")
    z = g.node("Sin", [y], "behind the first")
    w = g.node("Div", [x, g.constant(3.0)], "second")
    v = g.quant(g.linear(x, "fc", 4, 4), "bad", 1, 4, mode="CEIL")
    found = [(p.code, p.place.node) for p in check(g.model(z, w, v))]
    assert found == [("PQ201", "first"), ("PQ201", "behind the first"), ("PQ202", "second"), ("PQ207", "bad")]


def test_a_sum_beyond_53_bits_is_refused() -> None:
    def edit(g: File, x: str) -> str:
        for n in range(3):
            x = g.node("Mul", [x, g.constant(1 + 2.0**-20)], f"m{n}")
        return x

    assert [(p.code, p.place.node) for p in check(small(edit=edit))] == [("PQ303", "m2")]


def test_an_input_without_quantizer_is_refused() -> None:
    g = File()
    model = g.model(g.linear(g.node("Relu", [g.input("x", 4)], "relu"), "fc", 4, 2))
    assert [(p.code, p.place.node) for p in check(model)] == [("PQ202", "fc")]


def test_a_stream_feeds_at_most_seven_readers() -> None:
    g = File()
    x = g.half_up(g.input("x", 4), "x.quantizer", 3, 8)
    model = g.model(*(g.node("Mul", [x, g.constant(float(n))], f"m{n}") for n in range(2, 10)))
    assert check(model) == []
    assert [p.code for p in check(model, "io_stream")] == ["PQ202"]


def test_an_unread_input_would_stop_a_stream() -> None:
    g = File()
    y = g.quant(g.input("x", 4), "x.quantizer", 3, 8)
    g.input("spare", 5)
    model = g.model(y)
    assert check(model) == []
    assert [(p.code, p.place.node) for p in check(model, "io_stream")] == [("PQ202", "spare")]


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00\xff not a model")
    cyclic, missing, twice = small(), small(), small()
    cyclic.graph.node[-1].input[1] = cyclic.graph.node[-1].output[0]
    missing.graph.node[-1].input[0] = "nowhere"
    twice.graph.node[-1].output[0] = twice.graph.node[0].output[0]
    cases = [(tmp_path / "absent.onnx", None), (tmp_path / "noise.onnx", None), (onnx.ModelProto(), None)]
    cases += [(cyclic, "fc"), (missing, "fc"), (twice, "fc")]
    for model, node in cases:
        with pytest.raises(LoweringError) as error:
            to_hls4ml(model, tmp_path / "project")
        assert error.value.code == "PQ508"
        assert error.value.place.node == node
    assert [(p.code, p.place.node) for p in check(cyclic)] == [("PQ508", "fc")]


def test_dynamic_shapes_and_wrong_options_are_refused(tmp_path: Path) -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    assert [p.code for p in check(model)] == ["PQ202"]
    for code, wrong in (("PQ405", {"backend": "Libero"}), ("PQ405", {"io_type": "io_serial"}), ("PQ407", {"clock_period": -5})):
        with pytest.raises(ConfigError, match=code):
            to_hls4ml(small(), tmp_path / "project", **wrong)  # type: ignore[arg-type]


def test_types_are_exact_and_rounding_is_one_quantizer(tmp_path: Path) -> None:
    """x: guard, half and floor are one RND port; fc: 4 weights of at most 31/64 on codes of 8 bits: the accumulator is the exact bound."""
    project = to_hls4ml(small(), tmp_path / "project")
    layers = {layer.name: str(layer.get_output_variable().type.precision) for layer in project.model_graph.graph.values()}
    weight, bias = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in small().graph.initializer[-2:])
    low = (np.where(weight > 0, -16, 16 - 2**-3) * weight).sum(0) + bias
    high = (np.where(weight > 0, 16 - 2**-3, -16) * weight).sum(0) + bias
    exact = FixedFormat.for_codes(round(float(low.min()) * 2**9), round(float(high.max()) * 2**9), 9)
    assert layers == {"x_in": "fixed<8,5,RND,SAT,0>", "fc": f"fixed<{exact.width},{exact.i + 1},TRN,WRAP,0>"}


def test_why_hls4mls_own_type_inference_is_not_used(tmp_path: Path) -> None:
    """bit_exact takes the maxima of width and integer bits over channels on different grids and loses all 9 fraction bits.

    If this fails, hls4ml has changed: look again at whether explicit types are still needed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import hls4ml
        from hls4ml.model.graph import ModelGraph

        config = hls4ml.converters.create_config(output_dir=str(tmp_path), backend="Vitis", io_type="io_parallel")
        config["HLSConfig"] = {"Model": {"Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1, "Strategy": "Latency"}}

        def quantizer(name: str, source: str, width: int, integer: int) -> dict[str, object]:
            kbi = tuple(np.array([v], dtype=np.int16) for v in (1, width, integer))
            return {"name": name, "class_name": "FixedPointQuantizer", "inputs": [source], "mask_kbi": kbi, "RND": "RND", "SAT": "SAT",
                    "fusible": None, "overrides": {}}  # fmt: skip

        weight = np.array([[8, 2**-6], [8, -(2**-6)]])
        layers = [
            {"name": "x", "class_name": "InputLayer", "input_shape": [2]}, quantizer("q", "x", 7, 4),
            {"name": "d", "class_name": "Dense", "inputs": ["q"], "weight_data": weight, "bias_data": np.zeros(2), "n_in": 2, "n_out": 2},
            quantizer("r", "d", 19, 10),
        ]  # fmt: skip
        graph = ModelGraph.from_layer_list(config, layers, ["x"], ["r"])
    assert graph.graph["d"].get_output_variable().type.precision.fractional == 0


def test_two_casts_in_a_row_and_two_quantizers_on_one_layer_stay_separate(tmp_path: Path) -> None:
    project = to_hls4ml(hls4ml_models.two_inputs(), tmp_path / "project")
    types = {layer.name: str(layer.get_output_variable().type.precision) for layer in project.model_graph.graph.values()}
    assert types["relu"].startswith("ufixed<8,4,RND,SAT")
    assert types["cast1"].startswith("ufixed<6,4,TRN,SAT")
    assert types["cast2"].startswith("ufixed<4,3,RND_CONV,SAT")
    assert types["b_first"].startswith("fixed<8,5,TRN,SAT")
    assert types["fc2"].endswith("TRN,WRAP,0>")


@pytest.mark.parametrize("name", ["two_inputs", "digits_residual", "images", "line", "mixed_grids"])
def test_the_models_of_the_bit_tests_pass_the_check(name: str) -> None:
    for io_type in ("io_parallel", "io_stream"):
        assert check(getattr(hls4ml_models, name)(), io_type) == []


def test_a_directory_of_somebody_else_is_refused_and_ours_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="PQ506"):
        to_hls4ml(small(), tmp_path / "theirs", overwrite=True)
    first = to_hls4ml(small(), tmp_path / "ours")
    with pytest.raises(OutputError, match="PQ506"):
        to_hls4ml(small(), tmp_path / "ours")
    (first.path / "stale").touch()
    to_hls4ml(small(), tmp_path / "ours", overwrite=True)
    assert not (first.path / "stale").exists()
    with pytest.raises(OutputError, match="PQ505"):
        to_hls4ml(small(), tmp_path / "theirs" / "thesis.tex" / "project")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


def test_the_written_project_knows_only_its_final_place(tmp_path: Path) -> None:
    project = to_hls4ml(small(), tmp_path / "project", part="xc7z020clg400-1", clock_period=7)
    for file in (f for f in project.path.rglob("*") if f.is_file() and "ap_types" not in f.parts):
        assert f"{tmp_path}/." not in file.read_text(errors="ignore"), file
    settings_text = (project.path / "hls4ml_config.yml").read_text()
    assert str(project.path) in settings_text
    assert "xc7z020clg400-1" in settings_text
    assert "7" in (project.path / "project.tcl").read_text()


def test_hls4ml_is_quiet_and_leaves_the_process_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = os.getcwd(), logging.getLogger().level, warnings.filters[:]
    to_hls4ml(hls4ml_models.images(), tmp_path / "project")
    assert (os.getcwd(), logging.getLogger().level, warnings.filters[:]) == before
    assert capfd.readouterr() == ("", "")


def test_names_become_distinct_identifiers(tmp_path: Path) -> None:
    g = File()
    x = g.half_up(g.input("input", 4), "input.quantizer", 3, 8)
    names = ["0.weird name", "A", "a", "input.x", "double", "ünïcode"]
    project = to_hls4ml(g.model(*(g.linear(x, name, 4, 2) for name in names)), tmp_path / "project")
    layers = list(project.model_graph.graph)
    assert len(layers) == len(set(layers)) == len(names) + 1
    assert all(name.isascii() and name.isidentifier() for name in layers)


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = to_hls4ml(small(), tmp_path / "project")
    with pytest.raises(LoweringError, match="PQ409"):
        project.predict(np.zeros((3, 5)))
    with pytest.raises(LoweringError, match="PQ409"):
        project.predict(np.zeros((3, 4)), np.zeros((3, 4)))
    with pytest.raises(LoweringError, match=r"PQ305.*'x'"):
        project.predict(np.full((3, 4), np.nan))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExtraMissingError, match=r"PQ503.*g\+\+"):
        project.compile()
    with pytest.raises(ExtraMissingError, match=r"PQ503.*vitis-run"):
        project.build()


MODES = ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"]


@given(st.lists(st.floats(-100, 100) | st.integers(-999, 999).map(lambda n: n / 8), min_size=1), st.sampled_from(MODES), st.integers(-2, 3))
@settings(max_examples=200, deadline=None)
def test_a_sticky_port_keeps_every_rounding(values: list[float], mode: str, f: int) -> None:
    """q(port(x)) == q(x) for a port with two more fraction bits of which the last is sticky."""
    x = np.array(values)
    port = Port(FixedFormat(1, 5, f + 2), "ODD", "SAT")
    assert (quantize_array(port.arrive(x, "x"), 1, 4, f, mode, "SAT") == quantize_array(x, 1, 4, f, mode, "SAT")).all()


@given(st.lists(st.tuples(st.integers(-999, 999), st.integers(-20, 20)), min_size=1))
def test_fraction_bits_are_the_smallest(parts: list[tuple[int, int]]) -> None:
    values = np.array([float(n) * 2.0**e for n, e in parts])
    f = fraction_bits(values)
    assert (np.ldexp(values, f) == np.rint(np.ldexp(values, f))).all()
    assert not values.any() or (np.ldexp(values, f - 1) != np.rint(np.ldexp(values, f - 1))).any()


def test_quantizers_of_other_tools_read_the_same(tmp_path: Path) -> None:
    """Brevitas' domain, a Constant node, Gemm, Flatten and GlobalAveragePool, in one foreign file."""
    g = File()
    x = g.quant(g.input("x", 3, 4, 4), "x.quantizer", 3, 8, mode="ROUND")
    g.nodes[-1].domain = "onnx.brevitas"
    y = g.node("Flatten", [g.node("GlobalAveragePool", [g.conv(x, "conv", 3, 4, 3, 3)], "gap")], "flatten", axis=1)
    g.node("Constant", [], "weight", value=onnx.numpy_helper.from_array(g.codes(2, 4).astype(np.float32)))
    model = g.model(g.node("Gemm", [y, "weight", g.constant(g.codes(2))], "gemm", transB=1))
    model.opset_import[1].domain = QONNX
    assert check(model) == []
    assert check(model, "io_stream") == []
