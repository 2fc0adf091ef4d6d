"""The certificate: proofs against brute force, and a bundle that somebody changed fails by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.cli import main
from pquant_fx.cli.bundle import verify_bundle
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.proofs import proofs_of
from pquant_fx.report.bundle import bundle
from tests.frozen_graphs import FrozenNet
from tests.models import MLP

ENGINES = ("onnx", "qonnx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    return bundle(pq.compile(MLP(), "fixed8", x).freeze(), tmp_path_factory.mktemp("whole") / "mlp", x[:20], hls4ml=False, stress=16)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mlp"))


def flip(path: Path, name: str) -> None:
    """One bit of one weight, the least significant of the mantissa."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.view(np.uint32).reshape(-1)[3] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def golden(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(path / "golden.npz") as held:
        arrays = {name: held[name].copy() for name in held.files}
    change(arrays)
    np.savez_compressed(path / "golden.npz", **arrays)  # type: ignore[arg-type]


def test_a_whole_bundle_passes_and_says_on_how_many_vectors(whole: Path) -> None:
    report = verify_bundle(whole, ENGINES, "io_parallel", None)
    assert report.ok
    assert report.samples == 36


@pytest.mark.parametrize("file", ["qonnx.onnx", "plain.onnx"])
def test_one_flipped_weight_bit_is_named(copy: Path, file: str) -> None:
    import onnx

    names = [t.name for t in onnx.load(copy / file).graph.initializer]
    weight = next(n for n in names if n.startswith("0.weight") and not n.endswith(("scale", "zero", "bits")))
    flip(copy / file, weight)
    report = verify_bundle(copy, ENGINES, "io_parallel", None)
    assert not report.ok
    assert report.findings == (f"{file} was changed: tensor '{weight}'",)


def test_one_changed_golden_vector_is_named_and_so_is_its_sample(copy: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["output_0"][7, 2] += 1

    golden(copy, change)
    report = verify_bundle(copy, ENGINES, "io_parallel", None)
    assert not report.ok
    assert report.findings == ("golden.npz was changed: array 'output_0'",)
    assert report.first_difference is not None
    assert (report.first_difference.first_sample, report.first_difference.samples) == (7, 1)

    def change_input(arrays: dict[str, np.ndarray]) -> None:
        arrays["output_0"][7, 2] -= 1
        arrays["input_input"][0, 0] = np.nextafter(arrays["input_input"][0, 0], 9)

    golden(copy, change_input)
    report = verify_bundle(copy, ENGINES, "io_parallel", None)
    assert [f for f in report.findings if "input_input" in f]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a node of another kind": (lambda p: _exchange(p / "qonnx.onnx", "Relu", "Neg"), "qonnx.onnx was changed: the graph"),
    "half a model": (lambda p: (p / "plain.onnx").write_bytes((p / "plain.onnx").read_bytes()[:400]), "plain.onnx was changed"),
    "vectors that are no archive": (lambda p: (p / "golden.npz").write_bytes(b"PK" + bytes(60)), "golden.npz was changed: it can not be"),
    "vectors with one bit flipped": (lambda p: _flip_byte(p / "golden.npz"), "golden.npz was changed"),
    "vectors gone": (lambda p: (p / "golden.npz").unlink(), "golden.npz is missing"),
    "a report that says something else": (lambda p: (p / "report.txt").write_text("all is well"), "report.txt was changed"),
    "a certificate gone": (lambda p: (p / "certificate.json").unlink(), "there is no certificate.json"),
}


def _exchange(path: Path, old: str, new: str) -> None:
    import onnx

    model = onnx.load(path)
    next(n for n in model.graph.node if n.op_type == old).op_type = new
    onnx.save(model, path)


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("case", DAMAGE)
def test_whatever_else_was_changed_is_named(copy: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(copy)
    report = verify_bundle(copy, ENGINES, "io_parallel", None)
    assert not report.ok
    assert any(f.startswith(expected) for f in report.findings), report.findings


def test_the_command_line_fails_and_names_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "qonnx.onnx", "2.weight.T")
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(copy), "--targets", "onnx,qonnx"])
    assert caught.value.code == 1
    assert "qonnx.onnx was changed: tensor '2.weight.T'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["verify", str(copy), "--targets", "onnx", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["findings"]) == (False, ["qonnx.onnx was changed: tensor '2.weight.T'"])


def test_a_certificate_that_is_none_is_refused(copy: Path) -> None:
    (copy / "certificate.json").write_text("{}")
    with pytest.raises(pq.InputError) as caught:
        verify_bundle(copy, ENGINES, "io_parallel", None)
    assert caught.value.code == "PQ409"


def test_the_certificate_holds_versions_hashes_and_proofs_and_is_the_same_again(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    frozen = pq.compile(MLP(), "fixed8", x).freeze()
    again = bundle(frozen, tmp_path / "mlp", x[:20], hls4ml=False, stress=16)
    assert (again / "certificate.json").read_bytes() == (whole / "certificate.json").read_bytes()
    held = json.loads((whole / "certificate.json").read_text())
    assert held["versions"]["torch"] == torch.__version__.partition("+")[0] or held["versions"]["torch"] == torch.__version__
    assert set(held["files"]) == {"qonnx.onnx", "plain.onnx", "golden.npz", "report.txt", "report.html"}
    assert held["proofs"] == json.loads(json.dumps(frozen.proofs().data()))
    assert len(held["proofs"]["quantizers"]) == len(frozen.formats.facts)


@pytest.mark.parametrize("integer_bits", [0, 1, 2, 4])
def test_proofs_are_what_every_input_shows(integer_bits: int) -> None:
    """Two inputs of three bits: 64 samples are all there are. A proof holds on each of them, and where there is none one breaks it."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, 1, 1, "TRN", "SAT")
    w = net.parameter("w", torch.tensor([[0.75, -0.5], [1.0, 0.25], [-0.25, 0.5]]), 1, 1, 2)
    total = net.call(F.linear, q, w, net.parameter("b", torch.tensor([0.5, -1.0, 0.25]), 1, 1, 3))
    gm = net.done((total, net.quantize(total, 1, integer_bits, 3, "TRN", "WRAP", name="last")))
    grid = torch.arange(-4, 4) / 2.0
    with torch.no_grad():
        raw, wrapped = gm(torch.cartesian_prod(grid, grid))
    made = proofs_of(gm, analyse(gm))
    (accumulator,) = made.accumulators
    codes = raw.double() * 2.0**accumulator.f
    assert accumulator.lowest <= codes.min() <= codes.max() <= accumulator.highest
    assert -(2 ** (accumulator.bits - 1)) <= accumulator.lowest <= accumulator.highest < 2 ** (accumulator.bits - 1)
    first, last = made.quantizers
    assert not first.never_overflows
    assert not made.never_saturates  # an input may be anything
    assert last.never_overflows == made.never_wraps == bool(((raw >= -(2.0**integer_bits)) & (raw < 2.0**integer_bits)).all())
    assert last.never_rounds == bool((torch.floor(raw * 8) == raw * 8).all())
    if made.never_wraps:
        assert torch.equal(raw, wrapped)
    assert f"[{accumulator.lowest}, {accumulator.highest}]" in str(made)
    assert list(made.data())[:3] == ["never_wraps", "never_saturates", "accumulator_bits"]
