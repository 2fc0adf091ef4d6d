"""Networks that learned their bits (HGQ), after freezing: every engine gives torch's bits, hls4ml takes them."""

from __future__ import annotations

import pytest
import torch

from pquant_fx.graph.dialect import Quantizer
from pquant_fx.lower.hls4ml.convert import check
from tests.per_element import learned, probes

WRAP = {"overflow_mode_data": "WRAP", "overflow_mode_parameters": "WRAP"}
CONFIGS = {"SAT": {}, "WRAP": WRAP, "WRAP, per element": {**WRAP, "data_granularity": "per_element"}}


@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("name", ["perceptron", "residual"])
def test_learned_bits_freeze_to_the_same_bits_everywhere(name: str, label: str) -> None:
    model = learned(name, CONFIGS[label])
    frozen = model.freeze()
    quantizers = [m for m in frozen.modules() if isinstance(m, Quantizer)]
    widths = [(k + i + f).unique().numel() for k, i, f in (m.kif() for m in quantizers)]
    assert sum(w > 1 for w in widths) > len(widths) / 3, "training must have told the elements apart"
    x = probes(name)
    with torch.no_grad():
        assert torch.equal(frozen(x), model.eval()(x))
    report = frozen.verify(x, targets=("integer", "onnx", "qonnx"))
    assert report.ok, str(report)
    assert len({row.tobytes() for row in frozen(x).numpy()}) > 20
    file = frozen.to_qonnx()
    assert check(file, "io_parallel") == []
    per_pixel = {p.code for p in check(file, "io_stream")}
    assert per_pixel == ({"PQ205"} if name == "residual" and "element" in label else set())
