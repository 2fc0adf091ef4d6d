"""QONNX files that can not be read: broken, cyclic, unknown, inexact. Every finding names its node, and all come at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pquant_fx as pq
from tests.foreign_files import QUANT_DOMAIN, ForeignFile

FILES = Path(__file__).parent / "fixtures" / "brevitas"


def refused(model: Any) -> dict[str | None, str]:
    """code by node of everything that was said."""
    with pytest.raises(pq.LoweringError) as caught:
        pq.from_qonnx(model)
    assert all(p.remedy and p.what for p in caught.value.problems)
    return {p.place.node: p.code for p in caught.value.problems}


def quantized(sample: tuple[int, ...] = (8,)) -> tuple[ForeignFile, str]:
    file = ForeignFile()
    return file, file.quant(file.input("x", 1, *sample), 6, 0.125, name="in")


def test_a_file_that_is_damaged_or_missing(tmp_path: Path) -> None:
    whole = (FILES / "mlp.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("half.onnx", "text.onnx", "empty.onnx", "missing.onnx"):
        assert set(refused(tmp_path / name).values()) == {"PQ508"}


def test_weights_in_a_second_file(tmp_path: Path) -> None:
    """How exporters write what is large: read where it is there, and refused with its name where it is not."""
    import onnx

    model = onnx.load(FILES / "residual.onnx")
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    x, y = (np.load(FILES / "residual.npz")[name] for name in "xy")
    assert np.array_equal(pq.from_qonnx(tmp_path / "net.onnx")(x).numpy(), y)
    (tmp_path / "net.data").unlink()
    with pytest.raises(pq.LoweringError, match=r"net\.data") as caught:
        pq.from_qonnx(tmp_path / "net.onnx")
    assert caught.value.code == "PQ508"


def test_a_cycle_names_its_nodes() -> None:
    file, x = quantized()
    file.node("Add", x, "second_out", name="first")
    file.node("Relu", "first_out", name="second")
    assert refused(file.done("second_out")) == {"first": "PQ508", "second": "PQ508"}


def test_a_tensor_that_nothing_makes_and_an_output_without_a_node() -> None:
    file, x = quantized()
    file.node("Add", x, "ghost", name="lonely")
    assert refused(file.done("lonely_out")) == {"lonely": "PQ508"}
    file, x = quantized()
    assert refused(file.done("nobody")) == {"nobody": "PQ508"}


def test_two_nodes_that_make_the_same_tensor() -> None:
    file, x = quantized()
    file.node("Relu", x, name="one")
    file.nodes.append(type(file.nodes[-1])())
    file.nodes[-1].CopyFrom(file.nodes[-2])
    file.nodes[-1].name = "two"
    assert set(refused(file.done("one_out")).values()) == {"PQ508"}


def test_unknown_operators_and_other_findings_come_together() -> None:
    file, x = quantized()
    strange = file.node("NonMaxSuppression", x, name="strange")
    file.node("Relu", strange, name="behind")
    other = file.node(
        "Trunc", x, *(file.constant(f"t{n}", v) for n, v in enumerate((1.0, 0.0, 8.0, 4.0))), name="trunc", domain=QUANT_DOMAIN
    )
    scaled = file.quant(x, 6, 0.3, name="float_scale")
    zero = file.quant(x, 6, 0.25, zero=3.0, name="zero_point")
    odd = file.quant(x, 4, 0.25, mode="HALF_EVEN_ODD", name="odd_mode")
    assert refused(file.done("behind_out", other, scaled, zero, odd)) == {
        "strange": "PQ201",
        "trunc": "PQ201",
        "float_scale": "PQ202",
        "zero_point": "PQ202",
        "odd_mode": "PQ207",
    }


CASES: dict[str, tuple[str, Callable[[ForeignFile, str], str]]] = {
    "the batch is reshaped away": ("PQ202", lambda f, x: f.node("Reshape", x, f.constant("s", [2, 4], "int64"), name="bad")),
    "the batch is transposed": ("PQ202", lambda f, x: f.node("Transpose", x, perm=[1, 0], name="bad")),
    "a division that is no shift": ("PQ202", lambda f, x: f.node("Div", x, f.constant("d", 3.0), name="bad")),
    "weights of the wrong size": ("PQ202", lambda f, x: f.node("MatMul", x, f.constant("w", np.ones((7, 3))), name="bad")),
    "a sign": ("PQ207", lambda f, x: f.node("BipolarQuant", x, f.constant("s", 1.0), name="bad", domain=QUANT_DOMAIN)),
    "one signed bit": ("PQ207", lambda f, x: f.quant(x, 1, 1.0, name="bad")),
    "a width that is no number of bits": ("PQ202", lambda f, x: f.quant(x, 4.5, 1.0, name="bad")),
    "a format of 60 bits": ("PQ306", lambda f, x: f.quant(x, 60, 0.5, name="bad")),
    "weights that are not finite": ("PQ305", lambda f, x: f.quant(f.constant("w", [np.nan] * 8), 4, 1.0, name="bad")),
    "a slice of nothing": (
        "PQ202",
        lambda f, x: f.node("Slice", x, *(f.constant(n, [v], "int64") for n, v in zip("sea", (5, 5, 1))), name="bad"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_has_no_exact_meaning_names_its_node(case: str) -> None:
    code, make = CASES[case]
    file, x = quantized()
    bad = make(file, x)
    total = file.node("Add", x, bad, name="sum") if bad in ("bad_out",) and case == "weights that are not finite" else bad
    assert refused(file.done(total)) == {"bad": code}


def test_batchnorm_whose_factors_are_not_exact_is_refused_with_the_way_out() -> None:
    file, x = quantized((3, 4, 4))
    parts = [file.constant(n, np.full(3, v)) for n, v in (("g", 1.1), ("b", 0.3), ("m", 0.2), ("v", 0.7))]
    with pytest.raises(pq.LoweringError) as caught:
        pq.from_qonnx(file.done(file.node("BatchNormalization", x, *parts, name="bn")))
    assert caught.value.place.node == "bn"
    assert "merge_bn" in caught.value.remedy


def test_float_biases_are_refused_by_name() -> None:
    """What is left of a fixed-point Brevitas model when its biases have no quantizer."""
    file, x = quantized()
    rng = np.random.default_rng(0)
    weight = file.quant(file.constant("fc.weight", rng.normal(size=(3, 8))), 4, 0.25)
    model = file.done(file.node("Gemm", x, weight, file.constant("fc.bias", rng.normal(size=3) * [1e-6, 1, 30]), transB=1, name="fc"))
    with pytest.raises(pq.LoweringError) as caught:
        pq.from_qonnx(model)
    assert "fc.bias" in str(caught.value)


def test_an_input_without_known_sizes() -> None:
    file = ForeignFile()
    file.input("image", 1, 0, 8)
    file.quant("image", 8, 0.5)
    assert refused(file.done("Quant_0_out")) == {"image": "PQ202"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mlp", "residual", "per_channel"])
def test_a_file_with_flipped_bytes_is_read_or_refused_but_never_crashes(name: str, tmp_path: Path) -> None:
    whole = (FILES / f"{name}.onnx").read_bytes()
    rng = np.random.default_rng(7)
    codes = set()
    for _ in range(120):
        data = bytearray(whole)
        for at in rng.integers(0, len(data) - 8, rng.integers(1, 5)):
            if rng.random() < 0.7:
                data[at] ^= 1 << int(rng.integers(0, 8))
            else:
                del data[at : at + int(rng.integers(1, 9))]
        (tmp_path / "damaged.onnx").write_bytes(bytes(data))
        try:
            pq.from_qonnx(tmp_path / "damaged.onnx")
            codes.add("read")
        except pq.PQuantError as error:
            codes.update(p.code for p in error.problems)
    assert {"PQ508", "read"} <= codes
