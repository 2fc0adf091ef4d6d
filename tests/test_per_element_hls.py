"""The C simulation of networks with a format for every element: four projects, no difference in any output bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pquant_fx.compiled import CompiledModel
from tests.per_element import Formats, compiled, learned, probes

pytestmark = pytest.mark.hls

WRAP = {"overflow_mode_data": "WRAP", "overflow_mode_parameters": "WRAP"}
SAT = ("SAT", "SAT_SYM")


def drawn(name: str, seed: int, **limits: Any) -> Callable[[], CompiledModel]:
    return lambda: Formats(seed, **limits).give(compiled(name))


NEAR = ("TRN", "RND", "RND_CONV")
PROJECTS: dict[str, tuple[str, str, Callable[[], CompiledModel]]] = {
    "SAT": ("perceptron", "io_parallel", drawn("perceptron", 7, overflows=SAT, bits=(2, 8), fraction=(-4, 7))),
    "WRAP": ("perceptron", "io_stream", drawn("perceptron", 7, overflows=("WRAP", "WRAP_SM"), roundings=("TRN",))),
    "SAT, images": (
        "residual",
        "io_parallel",
        drawn("residual", 10, overflows=SAT, bits=(2, 8), dead=0.05, fraction=(-6, 6), roundings=NEAR),
    ),
    "HGQ, WRAP, images": ("residual", "io_stream", lambda: learned("residual", WRAP)),
}


@pytest.mark.parametrize("label", PROJECTS)
def test_hls4ml_gives_every_bit(label: str) -> None:
    name, io_type, make = PROJECTS[label]
    frozen = make().freeze()
    x = probes(name)
    report = frozen.verify(x, targets=("integer", "qonnx", "hls4ml"), io_type=io_type)
    assert report.ok, str(report)
    again = frozen.verify(probes(name, seed=1), targets=("hls4ml",), io_type=io_type)
    assert again.ok, str(again)
    assert len({row.tobytes() for row in frozen(x).numpy()}) > 30, "the samples must move the outputs"
