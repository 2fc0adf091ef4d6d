"""The rules of the layout, as code: who may import whom, how long a file may be, what importing us costs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pquant_fx"

# package or module -> what of ours it may import
ALLOWED = {
    "errors": set(),
    "formats": {"errors"},
    "registry": {"errors"},
    "files": {"errors"},
    "config": {"formats", "errors", "configs"},
    "configs": {"config", "errors"},
    "graph": {"formats", "errors", "registry", "files"},
    "trace": {"graph", "errors"},
    "quantize": {"graph", "config", "formats", "errors", "registry"},
    "prune": {"graph", "config", "formats", "errors", "registry"},
    "tabular": set(),
    "estimate": {"graph", "formats", "errors", "tabular"},
    "passes": {"graph", "quantize", "prune", "config", "formats", "estimate", "errors", "registry"},
    "lower": {"graph", "quantize", "formats", "errors", "files", "registry", "tabular"},
    "train": {"graph", "quantize", "prune", "config", "estimate", "formats", "errors", "registry", "files"},
    "report": {"estimate", "graph", "lower", "formats", "errors", "files", "tabular"},
    "example_inputs": {"errors", "graph"},
    "compiled": {"config", "errors", "estimate", "example_inputs", "frozen", "graph", "passes", "quantize", "train"},
    "frozen": {"compiled", "config", "errors", "estimate", "graph", "lower", "passes", "quantize"},
    "imported": {"config", "errors", "formats", "frozen", "graph", "lower", "passes", "quantize"},
    "alkaid_plugin": {"frozen", "lower"},
    "demo": None,
    "api": None,
    "checkpoints": None,
    "cli": None,
    "__init__": None,
}
TOP = ("api", "cli", "demo", "__init__")
# typer reads annotations when the module loads, and nothing but the command line loads it; qonnx imports a domain's module
# to find its operators, which are subclasses of its own
AT_HOME = {"cli": {"typer"}, "qonnx_ops": {"qonnx", "onnx"}, "qonnx_double": {"qonnx", "onnx"}}
HEAVY = ("onnx", "onnxruntime", "qonnx", "hls4ml", "alkaid", "optuna", "mlflow", "matplotlib", "sklearn", "rich", "typer")


def sources() -> list[Path]:
    own = [p for p in PACKAGE.rglob("*.py") if not {"passes", "configs"} & set(p.relative_to(PACKAGE).parts[:1])]
    return sorted([*own, *(ROOT / "passes").glob("*.py"), *(ROOT / "configs").glob("*.py")])


def area(path: Path) -> str:
    relative = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.relative_to(ROOT)
    first = relative.parts[0].removesuffix(".py")
    return next((name for name in ALLOWED if first == name or first.startswith(f"{name}_")), first)


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """Imported modules, and whether the import stands at the top level of the module."""
    top = {id(n) for n in getattr(tree, "body", [])}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, id(node) in top) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module if node.module != "pquant_fx" else f"pquant_fx.{a.name}", id(node) in top) for a in node.names]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = area(path)
    assert here in ALLOWED, f"{path} belongs to no area of the layout"
    allowed = ALLOWED[here]
    if allowed is None:
        return
    for module, _ in imports(ast.parse(path.read_text())):
        if module.startswith("pquant_fx."):
            target = module.split(".")[1]
            target = next((name for name in ALLOWED if target == name or target.startswith(f"{name}_")), target)
            assert target == here or target in allowed, f"{here} must not import {module}"
            assert target not in TOP


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_used(path):
    home = AT_HOME.get(area(path), set()) | AT_HOME.get(path.stem, set())
    for module, at_top in imports(ast.parse(path.read_text())):
        if module.split(".")[0] in HEAVY and module.split(".")[0] not in home:
            assert not at_top, f"import {module} inside the function that needs it"


@pytest.mark.parametrize(
    "path", [*sources(), *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))], ids=lambda p: p.name
)
def test_files_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 300, f"{path} is too long: split it by what it does"
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert '"""' in text.lstrip()[:4] or not text.strip(), f"{path} has no docstring"


def test_the_package_list_is_the_tree():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"pquant_fx.passes", "pquant_fx.configs"}
    for name in ("passes", "configs"):
        assert (PACKAGE / name).is_symlink()
        assert not [p for p in (ROOT / name).iterdir() if p.is_dir() and p.name != "__pycache__"], f"keep {name}/ flat"


def test_importing_us_is_light_and_changes_nothing():
    code = (
        "import sys, torch; before = {n: getattr(torch, n) for n in dir(torch)}; call = torch.nn.Module.__call__\n"
        "import pquant_fx\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert 'passes' not in sys.modules and 'configs' not in sys.modules\n"
        "assert torch.nn.Module.__call__ is call\n"
        "assert all(getattr(torch, n) is v for n, v in before.items())\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_public_api_is_what_the_package_says():
    import pquant_fx

    assert sorted(pquant_fx.__all__, key=str.lower) == sorted(set(pquant_fx.__all__), key=str.lower)
    for name in pquant_fx.__all__:
        assert getattr(pquant_fx, name) is not None
