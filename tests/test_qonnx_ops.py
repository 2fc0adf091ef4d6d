"""The domain `pquant_fx.lower.qonnx_ops` and the numpy quantizer behind it: equal to the published vectors, found by qonnx alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.lower.fixed_point_numpy import overflow_codes, quantize_array, round_codes
from pquant_fx.lower.onnx.qonnx import OWN_DOMAIN, to_qonnx
from pquant_fx.lower.onnx.run import run_qonnx
from tests.frozen_graphs import FrozenNet, double_reference, published_vectors, stress_values, vector_net, wrong_vectors


def test_numpy_quantizer_equals_every_published_vector() -> None:
    wrong = [
        (kind, x)
        for (k, i, f, rounding, overflow), cases in published_vectors().items()
        for x, q in cases.items()
        if quantize_array(x, *(kind := (k, i, f)), rounding, overflow) != q
    ]
    assert wrong == []


def test_numpy_quantizer_formats_per_element() -> None:
    k, i, f = np.array([1, 0, 1]), np.array([1, 2, -1]), np.array([2, 1, 0])
    assert quantize_array([1.9, 3.8, 5.0], k, i, f, "RND", "SAT").tolist() == [1.75, 3.5, 0.0]
    assert quantize_array([2.0, -0.5, -5.0], k, i, f, "TRN", "WRAP").tolist() == [-2.0, 3.5, 0.0]


@given(st.integers(-(2**40), 2**40), st.integers(0, 12), st.integers(0, 1))
def test_wrap_is_the_low_bits(n: int, magnitude: int, k: int) -> None:
    """Against two's complement on Python integers."""
    width = k + magnitude
    low = n & (2**width - 1)
    expected = low - 2**width if k and low >> (width - 1) & 1 else low
    assert overflow_codes(np.float64(n), np.float64(k), np.float64(magnitude), "WRAP") == expected


def test_unknown_modes_raise() -> None:
    with pytest.raises(ValueError, match="NEAREST"):
        round_codes(np.zeros(1), "NEAREST")
    with pytest.raises(ValueError, match="CLIP"):
        overflow_codes(np.zeros(1), np.ones(1), np.ones(1), "CLIP")


def test_the_published_vectors_hold_in_an_exported_file() -> None:
    """Quant where it can, FixedPoint elsewhere: 238 formats and modes on inputs off any grid, ties and overflows."""
    vectors = published_vectors()
    gm = vector_net(vectors)
    samples = len({x for cases in vectors.values() for x in cases})
    model = to_qonnx(gm, batch=samples)
    assert {n.op_type for n in model.graph.node} == {"Quant", "FixedPoint", "Add", "Clip"}
    assert wrong_vectors(vectors, lambda x: run_qonnx(model, x)) == []


def test_every_mode_per_element_executes_as_torch_does() -> None:
    """A format for each element, a zero-width one among them, in all modes."""
    net = FrozenNet()
    x = net.input("x", 6)
    k, i, f = [[1, 1, 0, 1, 0, 1]], [[2, 0, 3, 1, -1, -4]], [[3, 7, 0, 2, 4, 2]]
    outputs = {}
    for rounding in ROUNDING_MODES:
        for overflow in OVERFLOW_MODES:
            signs = [[1] * 6] if overflow == "WRAP_SM" else k
            outputs[f"{rounding}_{overflow}"] = net.quantize(x, signs, i, f, rounding, overflow, name=f"{rounding}_{overflow}")
    gm = net.done(outputs)
    values = stress_values((400, 6), 3, 4.0)
    model = to_qonnx(gm, batch=400)
    assert [n.op_type for n in model.graph.node] == ["FixedPoint"] * len(outputs)
    assert {o.domain for o in model.opset_import} == {"", OWN_DOMAIN}
    for name, expected, got in zip(outputs, double_reference(gm, values), run_qonnx(model, [values])):
        assert (expected == got).all(), name


def test_a_fresh_process_executes_the_file_without_pquant_fx_being_imported_first(tmp_path: Path) -> None:
    net = FrozenNet()
    gm = net.done(net.quantize(net.input("x", 2), 1, 2, 3, "TRN", "WRAP"))
    path = tmp_path / "wrap.onnx"
    to_qonnx(gm, path)
    code = (
        "import numpy as np, warnings; warnings.simplefilter('ignore')\n"
        "from qonnx.core.modelwrapper import ModelWrapper\nfrom qonnx.core.onnx_exec import execute_onnx\n"
        f"y = execute_onnx(ModelWrapper({str(path)!r}), {{'x': np.array([[4.0, -4.125]], dtype=np.float32)}})\n"
        "print(y['output'].tolist())"
    )
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120)
    assert ran.stdout.strip() == "[[-4.0, 3.875]]", ran.stderr


def test_qonnx_cleans_up_a_file_of_our_domain() -> None:
    """Shape and datatype inference of qonnx pass through FixedPoint."""
    import warnings

    net = FrozenNet()
    q = net.quantize(net.input("x", 4), 1, 1, 2, "RND_MIN_INF", "SAT_ZERO")
    gm = net.done(net.call(torch.nn.functional.relu, q))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_datatypes import InferDataTypes
        from qonnx.util.cleanup import cleanup_model

        clean = cleanup_model(ModelWrapper(to_qonnx(gm, batch=50))).transform(InferDataTypes())
    values = stress_values((50, 4), 2, 2.0)
    assert (run_qonnx(clean.model, [values])[0] == double_reference(gm, values)[0]).all()
