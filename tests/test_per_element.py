"""Formats of their own for every element: the same bits in torch, integers, plain ONNX and qonnx, on random networks."""

from __future__ import annotations

import copy
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from pquant_fx.compiled import CompiledModel
from pquant_fx.errors import LoweringError
from pquant_fx.frozen import FrozenModel
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of
from pquant_fx.lower.hls4ml.convert import check
from pquant_fx.lower.onnx.qonnx import OWN_DOMAIN
from tests.models import Bottleneck
from tests.per_element import NETWORKS, Formats, compiled, probes

ENGINES = ("integer", "onnx", "qonnx")
WIDE = {"fraction": (-4, 9), "weight_fraction": (-3, 12), "bits": (0, 9)}


def evaluated(model: CompiledModel, x: Tensor) -> list[Tensor]:
    """The compiled network in evaluation, in float64, where every value of these tests is exact."""
    with torch.no_grad():
        return [v for v in tree_leaves(copy.deepcopy(model).double().eval()(x.double())) if isinstance(v, Tensor)]


def uneven_quantizers(frozen: FrozenModel) -> list[tuple[Node, Quantizer]]:
    """Those whose elements have several widths or signs; a dead element of a parameter is no width, it holds 0 anyway."""
    gm, found = frozen.graph_module, []
    for node in gm.graph.nodes:
        if isinstance(quantizer := module_of(gm, node), Quantizer):
            k, i, f = quantizer.kif()
            alive = k + i + f > 0
            formats = {(int(s), int(w)) for s, w in zip(k[alive], (k + i + f)[alive])}
            if len(formats) > 1 or (formats and not is_parameter_value(node) and not bool(alive.all())):
                found.append((node, quantizer))
    return found


def assert_exact(model: CompiledModel, frozen: FrozenModel, x: Tensor) -> None:
    for expected, got in zip(evaluated(model, x), tree_leaves(frozen(x.double())), strict=True):
        assert torch.equal(expected, got.double())
    report = frozen.verify(x, targets=ENGINES)
    assert report.ok, str(report)


@pytest.mark.parametrize("data", ["element", "channel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_random_networks_give_the_same_bits_everywhere(name: str, data: str) -> None:
    """10 networks each, 60 in all: every weight, bias and value with its own k, i, f (negative ones and none) and random modes."""
    model, seen, results = compiled(name), Counter[torch.dtype](), set[bytes]()
    for seed in range(10):
        given = Formats(100 * seed + len(name) + len(data), data=data, **(WIDE if seed % 2 else {})).give(model)
        frozen = given.freeze()
        seen[frozen.dtype] += 1
        x = probes(name, seed)
        assert_exact(given, frozen, x)
        results |= {row.tobytes() for row in tree_leaves(frozen(x))[0].numpy()}
    assert seen[torch.float32] >= 3, "some of them must fit 24 bits"
    assert len(results) > 40, "the samples must move the outputs"


def test_wide_sums_run_in_float64_everywhere() -> None:
    model = Formats(3, bits=(8, 12), fraction=(-4, 10), weight_fraction=(-4, 12), dead=0.0).give(compiled("residual"))
    frozen = model.freeze()
    assert max(frozen.formats.bits(n) or 0 for n in frozen.graph_module.graph.nodes) > 30
    assert_exact(model, frozen, probes("residual"))
    assert frozen.verify(probes("residual"), targets=("qonnx",)).rows[0].engine == "qonnx float64"


@pytest.mark.parametrize("overflow", ["WRAP", "WRAP_SM"])
def test_wrapping_networks(overflow: str) -> None:
    for name in NETWORKS:
        model = Formats(7, overflows=(overflow,)).give(compiled(name))
        frozen = model.freeze()
        assert not any(facts.never_overflows for facts in list(frozen.formats.facts.values())[:1]), "the input must wrap"
        assert_exact(model, frozen, probes(name))


def test_strict_export_names_every_quantizer_that_has_several_widths() -> None:
    frozen = Formats(1, overflows=("SAT",), roundings=("RND",)).give(compiled("residual")).freeze()
    with pytest.raises(LoweringError) as caught:
        frozen.to_qonnx(strict=True)
    assert {p.place.node for p in caught.value.problems} == {node.name for node, _ in uneven_quantizers(frozen)}
    assert all(p.code == "PQ205" and "several widths" in p.what and "strict=False" in p.remedy for p in caught.value.problems)


def test_the_file_declares_the_formats_that_the_quantizers_have() -> None:
    """No covering type: k, i and f of the file's operators are those of the frozen quantizers, element by element."""
    frozen = Formats(1, overflows=("WRAP",)).give(compiled("perceptron")).freeze()
    file = frozen.to_qonnx()
    arrays = {t.name: np.asarray(torch.from_numpy(np.frombuffer(t.raw_data, dtype=np.float32).copy()).reshape(tuple(t.dims)))
              for t in file.graph.initializer if t.data_type == 1}  # fmt: skip
    declared = [n for n in file.graph.node if n.domain == OWN_DOMAIN]
    found = uneven_quantizers(frozen)
    assert len(declared) == len(found) > 5
    for _, quantizer in found:
        kif = [t.numpy() for t in quantizer.kif()]
        given = [[arrays[name] for name in n.input[1:4]] for n in declared]
        assert any(all(np.array_equal(a, b) or np.array_equal(a.T, b) for a, b in zip(one, kif)) for one in given)


SPREADS = {
    "data": ({"fraction": (-40, 40)}, "formats of its elements span"),
    "weights": ({"weight_fraction": (-2, 100), "dead": 0.0}, "values of one tensor span"),
    "sums": ({"weight_fraction": (-2, 50), "fraction": (-10, 34)}, "exact codes need"),
    "float64": ({"weight_fraction": (0, 22), "fraction": (-2, 20), "bits": (12, 18), "dead": 0.0}, "float64 holds 53"),
}


@pytest.mark.parametrize("label", SPREADS)
def test_formats_too_far_apart_are_refused_by_name(label: str) -> None:
    spread, what = SPREADS[label]
    with pytest.raises(LoweringError) as caught:
        Formats(0, **spread).give(compiled("residual")).freeze()
    assert {p.code for p in caught.value.problems} == {"PQ303"}
    assert any(what in p.what for p in caught.value.problems), str(caught.value)
    assert all(p.place.node and p.remedy for p in caught.value.problems)


def test_a_resnet_with_a_format_for_every_element_freezes_in_seconds() -> None:
    torch.manual_seed(0)
    blocks = [Bottleneck(16, 16), Bottleneck(16, 32, 2), Bottleneck(32, 64, 2)]
    resnet = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = pq.compile(resnet, "fixed8", torch.randn(4, 3, 32, 32))
    Formats(0).give(model)
    start = time.perf_counter()
    frozen = model.freeze()
    assert time.perf_counter() - start < 5
    assert sum(1 for m in frozen.graph_module.modules() if isinstance(m, Quantizer) and m.kif()[1].numel() > 1000) > 8


# ---- what hls4ml takes and refuses; nothing is compiled here
def refused(model: CompiledModel, io_type: str) -> list[tuple[str, str]]:
    return [(p.code, str(p.place.node)) for p in check(model.freeze().to_qonnx(), io_type)]


def test_a_stream_takes_formats_per_channel_but_not_per_pixel() -> None:
    modes = {"overflows": ("WRAP",), "roundings": ("RND",)}
    image = Formats(2, data="channel", **modes).give(compiled("residual"))
    assert refused(image, "io_stream") == []
    pixels = refused(Formats(2, **modes).give(image), "io_stream")
    assert pixels == [("PQ205", f"{name}.quantizer") for name in ("x", "relu", "relu_1", "relu_2")]
    assert refused(Formats(2, **modes).give(image), "io_parallel") == []
    assert refused(Formats(2, **modes).give(compiled("perceptron")), "io_stream") == []


def test_wrap_sm_is_exact_in_hls4ml_where_nothing_is_rounded_before() -> None:
    model = compiled("perceptron")
    assert refused(Formats(2, overflows=("WRAP_SM",), roundings=("TRN",)).give(model), "io_parallel") == []
    assert {code for code, _ in refused(Formats(2, overflows=("WRAP_SM",), roundings=("RND",)).give(model), "io_parallel")} == {"PQ207"}
