"""The command line: exit codes, what goes to which stream, and the whole way from a model to a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pquant_fx.cli import main
from pquant_fx.config import load_config, preset_names
from pquant_fx.errors import PQuantError

Result = tuple[int, str, str]
Run = Callable[..., Result]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 8)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def build():
    torch.manual_seed(0)
    return Net()

def with_x():
    return build(), torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "clinet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("clinet", None)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return code, printed.out, printed.err

    return call


# ---- usage and configuration
@pytest.mark.parametrize(
    "command",
    ["demo", "check", "compile", "verify", "import", "passes", "config template", "config presets", "config show"],
)
def test_the_help_of_every_command_holds_an_example(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"Example: pquant-fx {command}" in " ".join(out.split())


def test_wrong_usage_exits_with_two(run: Run) -> None:
    for arguments in (["nonsense"], ["check"], ["check", "m:f", "--nonsense"], ["compile", "m:f"]):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "Usage" in err


def test_help_does_not_load_torch() -> None:
    """The command line itself; what `import pquant_fx` loads is that package's business."""
    script = (
        "import sys, types; m = types.ModuleType('pquant_fx'); m.__path__ = ['pquant_fx']; sys.modules['pquant_fx'] = m\n"
        "import pquant_fx.cli; assert not {'torch', 'numpy', 'onnx', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


def test_config_presets_lists_all_that_load(run: Run) -> None:
    code, out, _ = run("config", "presets")
    assert code == 0
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert tuple(listed) == preset_names()
    assert json.loads(run("config", "presets", "--json")[1]) == listed
    for name in listed:
        assert run("config", "show", name)[0] == 0


def test_config_show_prints_what_loads_back(run: Run) -> None:
    code, out, err = run("config", "show", "fixed8", "--set", "training_parameters.learning_rate=1e-2", "--set", "layers.fc1.weight_bits=4")
    assert (code, err) == (0, "")
    expected = load_config("fixed8", overrides={"training_parameters.learning_rate": 0.01, "layers.fc1.weight_bits": 4})
    assert load_config(out) == expected
    assert load_config(json.loads(run("config", "show", "float", "--json")[1])) == load_config("float")


def test_errors_are_printed_with_code_place_and_remedy_and_no_traceback(run: Run, folder: Path) -> None:
    (folder / "c.yaml").write_text("training_parameters:\n  epochs: many\nquantization_parameters:\n  defualt_data_bits: 6\n")
    code, out, err = run("config", "show", "c.yaml")
    assert (code, out) == (2, "")
    assert "PQ406: unknown key 'quantization_parameters.defualt_data_bits'\n  where: c.yaml:4\n  remedy: did you mean" in err
    assert "PQ407: training_parameters.epochs" in err
    assert "Traceback" not in err
    code, out, err = run("config", "show", "c.yaml", "--json")
    found = json.loads(out)
    assert (code, found["ok"], [p["line"] for p in found["problems"]]) == (2, False, ["c.yaml:4", "c.yaml:2"])


def test_the_traceback_is_shown_when_asked_for(folder: Path) -> None:
    with pytest.raises(PQuantError) as caught:
        main(["config", "show", "fixd8", "--traceback"])
    assert caught.value.code == "PQ405"


def test_a_likely_typo_is_a_warning_on_standard_error(run: Run) -> None:
    code, out, err = run("config", "show", "fixed8", "--set", "training_parameters.epoch=3")
    assert code == 0
    assert err.startswith("warning: training_parameters.epoch ")
    assert "epoch: 3" in out


def test_settings_without_an_equals_sign_are_refused(run: Run) -> None:
    code, _, err = run("config", "show", "fixed8", "--set", "training_parameters.epochs")
    assert (code, err.partition(":")[0]) == (2, "PQ407")


# ---- the whole way
def test_check(run: Run) -> None:
    code, out, err = run("check", "clinet:build", "--input-shape", "16", "--target", "integer")
    assert (code, out) == (0, "nothing stands between clinet:build and integer\n"), err
    code, out, _ = run("check", "clinet:Branch", "--input-shape", "4", "--target", "integer", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["problems"][0]["code"]) == (1, False, "PQ101")
    line = NET.splitlines().index("        if x.sum() > 0:") + 1
    assert found["problems"][0]["line"].endswith(f"clinet.py:{line}")
    assert run("check", "clinet:build", "--input-shape", "16", "--target", "moon")[0] == 2


def test_a_template_is_a_config(run: Run, folder: Path) -> None:
    code, out, _ = run("config", "template", "clinet:with_x")
    assert code == 0
    assert {"fc1", "relu", "fc2"} <= set(load_config(out).layers)
    assert run("config", "template", "clinet:build", "--input-shape", "16", "--out", "net.yaml") == (0, "", "")
    assert load_config(folder / "net.yaml") == load_config(out)
    (folder / "net.yaml").write_text(out + "# edited\n")
    again = ("config", "template", "clinet:with_x", "--out", "net.yaml")
    code, _, err = run(*again)
    assert (code, err.partition(":")[0], "# edited" in (folder / "net.yaml").read_text()) == (2, "PQ506", True)
    assert run(*again, "--overwrite")[0] == 0
    assert "# edited" not in (folder / "net.yaml").read_text()
    assert run("check", "clinet:build", "--config", "net.yaml", "--target", "integer")[0] == 0


def test_passes_are_listed_in_order(run: Run) -> None:
    found = [row["name"] for row in json.loads(run("passes", "--json")[1])]
    assert found.index("canonicalize") < found.index("insert_quantizers")
    assert "insert_quantizers" not in run("passes", "--config", "float")[1]


def test_compile_and_verify(run: Run, folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(64, 16)), y=rng.integers(0, 4, 64))
    build = ("compile", "clinet:build", "--data", "data.npz", "--epochs", "1", "--no-hls4ml", "--out", "net")
    code, out, err = run(*build, "--json")
    assert code == 0, err
    assert {"golden.npz", "plain.onnx", "qonnx.onnx", "report.txt"} <= set(json.loads(out)["files"])
    assert "Training\n" in (folder / "net" / "report.txt").read_text()
    code, _, err = run(*build)
    assert (code, err.partition(":")[0], "--overwrite" in err) == (2, "PQ506", True)
    assert run(*build, "--overwrite")[0] == 0
    code, out, err = run("verify", "net", "--targets", "onnx,qonnx", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["samples"]) == (0, True, 80), err
    with np.load(folder / "net" / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["output_0"][3, 0] += 1
    np.savez(folder / "net" / "golden.npz", **arrays)
    code, out, _ = run("verify", "net", "--targets", "onnx", "--json")
    assert (code, json.loads(out)["rows"][0]["different"]) == (1, 1)
    assert run("verify", "net", "--targets", "integer")[0] == 2


def test_verify_a_model_on_random_numbers(run: Run) -> None:
    code, out, err = run("verify", "clinet:build", "--input-shape", "16", "--samples", "32", "--targets", "integer,onnx,qonnx")
    assert (code, "all engines agree bit for bit" in out) == (0, True), err
    assert run("verify", "clinet:with_x", "--targets", "integer", "--json")[0] == 0


def test_what_compile_refuses(run: Run, folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    for arguments, expected in (
        (["clinet:with_x", "--out", "mine", "--overwrite"], "PQ506"),
        (["clinet:with_x", "--out", "net", "--epochs", "2"], "PQ410"),
        (["clinet:build", "--out", "net"], "PQ407"),
        (["clinet:build", "--out", "net", "--input-shape", "16"], "PQ307"),
        (["clinet:build", "--out", "net", "--data", "nowhere.npz"], "PQ410"),
        (["clinet:with_x", "--out", "net", "--set", "layers.fc9.weight_bits=3"], "PQ402"),
    ):
        code, out, err = run("compile", *arguments, "--no-hls4ml")
        assert (code, out, err.partition(":")[0]) == (2, "", expected)
    assert not (folder / "net").exists()
    assert (folder / "mine" / "thesis.txt").read_text() == "precious"


def test_what_verify_refuses(run: Run, folder: Path) -> None:
    for arguments, expected in (
        ([str(folder)], "PQ409"),
        ([str(folder), "--data", "data.npz"], "PQ407"),
        ([str(folder), "--config", "float"], "PQ407"),
        ([str(folder), "--targets", ","], "PQ405"),
        (["nowhere"], "PQ409"),
        (["clinet:with_x", "--targets", ""], "PQ405"),
        (["clinet:with_x", "--targets", "moon"], "PQ405"),
        (["clinet:with_x", "--io-type", "io_magic"], "PQ405"),
    ):
        code, _, err = run("verify", *arguments)
        assert (code, err.partition(":")[0]) == (2, expected)
