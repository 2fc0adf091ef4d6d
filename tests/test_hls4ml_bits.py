"""Bit for bit: the C simulation of an imported QONNX file equals a float64 evaluation of that file, with no tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pquant_fx.lower.hls4ml.convert import HlsProject, to_hls4ml
from tests import hls4ml_models
from tests.hls4ml_zoo import Array, evaluate

pytestmark = pytest.mark.hls

BOTH = ("io_parallel", "io_stream")
PARALLEL = ("modes", "ports", "per_element", "vectors")
CASES = [(name, io) for name in ("two_inputs", "digits_residual", "images", "line", "mixed_grids") for io in BOTH]
CASES += [(name, "io_parallel") for name in PARALLEL]


def samples(model: onnx.ModelProto, n: int = 60) -> list[Array]:
    """Off-grid numbers, ties of every grid down to 2^-7, saturating numbers, zeros: float32 values, as torch would feed them."""
    random = np.random.default_rng(7)
    made = []
    for value in model.graph.input:
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
        x = random.normal(0, 3, (n, *shape))
        for part, f in enumerate((2, 3, 4, 5, 7)):
            x[part * 6 : part * 6 + 6] = np.round(x[part * 6 : part * 6 + 6] * 2**f) / 2**f
        x[30:36] *= 100
        x[36] = 0
        x[37], x[38] = 1e30, -1e30
        made.append(x.astype(np.float32).astype(np.float64))
    return made


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{io}" for name, io in CASES])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, onnx.ModelProto, HlsProject]:
    name, io_type = request.param
    model = getattr(hls4ml_models, name)()
    return name, model, to_hls4ml(model, tmp_path_factory.mktemp(name) / "project", io_type=io_type).compile()


def test_every_output_of_every_sample_equals_the_file(built: tuple[str, onnx.ModelProto, HlsProject]) -> None:
    name, model, project = built
    x = samples(model)
    if name == "ports":
        x[1] = np.clip(x[1], -1e6, 1e6)  # WRAP of numbers beyond 2^53 codes is exact here but not in the evaluator's arithmetic
    expected = evaluate(model, *x)
    predicted = project.predict(*x)
    got = predicted if isinstance(predicted, list) else [predicted]
    assert [g.shape for g in got] == [e.shape for e in expected]
    wrong = {o.name: int((g != e).sum()) for o, g, e in zip(model.graph.output, got, expected, strict=True)}
    assert {name: count for name, count in wrong.items() if count} == {}
    assert any(np.unique(e).size > 5 for e in expected), "the samples must move the outputs"


def test_one_sample_and_float32_and_lists_are_accepted(built: tuple[str, onnx.ModelProto, HlsProject]) -> None:
    _, model, project = built
    x = samples(model, 40)
    many = project.predict(*(v.astype(np.float32) for v in x))
    one = project.predict(*(v[3:4].tolist() for v in x))
    for whole, single in zip(many if isinstance(many, list) else [many], one if isinstance(one, list) else [one], strict=True):
        assert (whole[3:4] == single).all()


def test_optimisation_does_not_change_bits(tmp_path: Path) -> None:
    model = hls4ml_models.two_inputs()
    project = to_hls4ml(model, tmp_path / "project")
    x = samples(model)
    fast = project.compile().predict(*x)
    slow = project.compile(optimize=True).predict(*x)
    assert all((a == b).all() for a, b in zip(fast, slow, strict=True))
