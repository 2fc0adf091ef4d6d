"""`pquant-fx import`: from a file that Brevitas wrote to a bundle that verifies, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pquant_fx.cli import main

FILES = Path(__file__).parent / "fixtures" / "brevitas"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.out, printed.err


def test_a_brevitas_file_becomes_a_bundle_that_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "residual"
    np.savez(tmp_path / "data.npz", x=np.load(FILES / "residual.npz")["x"])
    given = ["import", str(FILES / "residual.onnx"), "--out", str(out), "--no-hls4ml", "--data", str(tmp_path / "data.npz")]
    code, printed, _ = run(capsys, *given)
    assert code == 0
    assert "all engines agree bit for bit" in printed
    assert "residual.onnx:" in printed
    assert (out / "certificate.json").exists()
    assert run(capsys, "verify", str(out), "--targets", "onnx,qonnx")[0] == 0
    golden = np.load(out / "golden.npz")
    y = np.load(FILES / "residual.npz")["y"]
    assert np.array_equal(golden["output_0"][: len(y)] * 2.0 ** -float(golden["output_0_f"]), y)
    assert run(capsys, *given)[0] == 2  # a bundle stands there
    assert run(capsys, *given, "--overwrite")[0] == 0


def test_without_out_it_only_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "import", str(FILES / "mlp.onnx"), "--json", "--samples", "20")
    told = json.loads(printed)
    assert (code, told["ok"], told["samples"], told["out"]) == (0, True, 20, None)
    assert told["proofs"]["accumulator_bits"] >= 17


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([str(FILES / "default.onnx")], "PQ202"),
        ([str(FILES / "nowhere.onnx")], "PQ508"),
        ([str(FILES / "mlp.onnx"), "--format", "x"], "PQ407"),
        ([str(FILES / "mlp.onnx"), "--format", "nobody=fixed<8,3>"], "PQ405"),
    ],
)
def test_bad_input_is_refused_with_its_code(arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, told = run(capsys, "import", *arguments)
    assert (status, printed) == (2, "")
    assert told.startswith(code)
    assert "Traceback" not in told
