"""What a command line names, as objects: the model behind `module:callable`, input shapes, and data in a .npz file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pquant_fx.errors import ConfigError, InputError, Place, Problem, TrainingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

__all__ = ["Data", "Shapes", "input_names", "input_shapes", "load_model", "random_inputs", "read_data"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Data:
    """Samples from a file: one tensor an input, batch first, and the targets if there are any."""

    inputs: dict[str, Tensor]
    targets: Tensor | None

    @property
    def samples(self) -> int:
        return len(next(iter(self.inputs.values())))

    def first(self, count: int) -> dict[str, Tensor]:
        """The first `count` samples of each input."""
        return {name: values[:count] for name, values in self.inputs.items()}


# ---- the model
def load_model(spec: str) -> tuple[nn.Module, Any]:
    """The model that `module:callable` names, and its example inputs if the callable returns (model, example_inputs).

    The module is looked up from the current directory first. The name may also be a finished nn.Module or a class.
    Raises ConfigError (PQ507) when there is no such thing, or it fails, or gives no model.
    """
    from torch import nn

    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise _wrong(f"'{spec}' names no model", "write 'module:callable', as in 'mynet:build'")
    if name.endswith(".py") or "/" in name:
        remedy = f"write '{name.removesuffix('.py').rpartition('/')[2]}:{attribute}' and run it in the folder of that file"
        raise _wrong(f"'{name}' is a file, not a module", remedy)
    made = _attribute(_module(name), attribute, spec)
    if not isinstance(made, nn.Module):
        made = _called(made, spec)
    net, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module):
        raise _wrong(f"'{spec}' gave {type(net).__name__}, not a model", "let it return an nn.Module, or (nn.Module, example_inputs)")
    return net, examples


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            remedy = f"install '{error.name}', or mend the import"
            raise _wrong(f"'{name}' imports '{error.name}', which is not installed", remedy, _line(error)) from error
        near = difflib.get_close_matches(name, [path.stem for path in Path.cwd().glob("*.py")], 1)
        remedy = f"did you mean '{near[0]}'?" if near else "run the command in the folder of that module, or install it"
        raise _wrong(f"there is no module '{name}'", remedy) from None
    except Exception as error:  # the user's own code runs here
        raise _wrong(f"importing '{name}' failed: {type(error).__name__}: {error}", "mend the module", _line(error)) from error


def _attribute(module: ModuleType, dotted: str, spec: str) -> Any:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], 1)
            remedy = f"did you mean '{near[0]}'?" if near else "name a function, a class or a model of that module"
            raise _wrong(f"'{spec}': there is no '{part}'", remedy, Place(line=getattr(module, "__file__", None)))
        found = getattr(found, part)
    return found


def _called(build: Any, spec: str) -> Any:
    if not callable(build):
        raise _wrong(f"'{spec}' is a {type(build).__name__}", "name a function that returns the model")
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise _wrong(f"'{spec}' needs arguments: {error}", "name a function without arguments that returns the model") from None
    try:
        return build()
    except Exception as error:  # the user's own code runs here
        raise _wrong(f"'{spec}' failed: {type(error).__name__}: {error}", "mend the function", _line(error)) from error


def _wrong(what: str, remedy: str, place: Place | None = None) -> ConfigError:
    return ConfigError(Problem("PQ507", what, remedy, place or Place()))


def _line(error: Exception) -> Place:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    return Place(line=f"{own[-1].filename}:{own[-1].lineno}") if own else Place()


# ---- inputs
def input_names(model: nn.Module) -> list[str]:
    """The arguments of `forward` that must be given, or the first one if none must."""
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = [p for p in inspect.signature(model.forward).parameters.values() if p.kind not in fixed]
    needed = [p.name for p in found if p.default is inspect.Parameter.empty]
    return needed or [p.name for p in found[:1]]


def input_shapes(model: nn.Module, shape: str | None, named: Sequence[str]) -> Shapes:
    """Shapes without batch from `--input-shape 1,8,8` or several `--input x=1,8,8`.

    Raises ConfigError (PQ407) for text that is no shape, InputError (PQ409) for a name that `forward` does not have.
    """
    names = input_names(model)
    if shape is not None and named:
        raise ConfigError(Problem("PQ407", "--input-shape and --input were both given", "keep one of the two"))
    if shape is not None:
        if len(names) != 1:
            remedy = " ".join(f"--input {name}=..." for name in names) or "give example inputs"
            raise InputError(Problem("PQ409", f"--input-shape is for one input, forward takes {len(names)}", f"write {remedy}"))
        return {names[0]: _shape(shape)}
    found: Shapes = {}
    for text in named:
        name, equals, numbers = text.partition("=")
        if not equals:
            raise ConfigError(Problem("PQ407", f"--input {text}: no '='", "write it as --input x=1,8,8"))
        if name not in inspect.signature(model.forward).parameters:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean '{near[0]}'?" if near else f"its arguments are: {', '.join(names)}"
            raise InputError(Problem("PQ409", f"forward has no argument '{name}'", remedy))
        found[name] = _shape(numbers)
    return found


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.lower().replace("x", ",").split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(Problem("PQ407", f"'{text}' is no shape", "write positive numbers without the batch, as in 1,8,8"))
    return tuple(int(part) for part in parts)


def random_inputs(shapes: Shapes, samples: int) -> dict[str, Tensor]:
    """Normal random numbers of these shapes, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(samples, *shape, generator=generator) for name, shape in shapes.items()}


# ---- data
def read_data(path: Path, names: Sequence[str]) -> Data:
    """Samples in a .npz file: `x` (or one array an input, by its name or as `input_<name>`), and targets in `y`.

    Floating-point numbers become float32. Raises TrainingError (PQ410) when the file can not be used: missing, no .npz,
    arrays missing, without samples or of different lengths.
    """
    import torch

    arrays = _arrays(path)
    inputs = {name: found for name in names if (found := _pick(arrays, name, single=len(names) == 1)) is not None}
    missing = [name for name in names if name not in inputs]
    if missing:
        keys, lacking = (names, missing[0]) if len(names) > 1 else (["x"], "x")
        what = f"'{path}' holds {', '.join(arrays) or 'nothing'}, but no '{lacking}'"
        raise _unusable(what, f"save it with numpy.savez(path, {', '.join(f'{key}={key}' for key in keys)}, y=targets)")
    lengths = {
        name: array.shape[0] if array.ndim else 0 for name, array in {**inputs, **({"y": arrays["y"]} if "y" in arrays else {})}.items()
    }
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise _unusable(
            f"'{path}' holds {', '.join(f'{n} {name}' for name, n in lengths.items())}", "give every array the same samples first"
        )
    tensors = {name: torch.from_numpy(_numbers(array)) for name, array in inputs.items()}
    return Data(tensors, torch.from_numpy(_numbers(arrays["y"])) if "y" in arrays else None)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    import numpy as np

    remedy = "give a file that numpy.savez(path, x=samples, y=targets) wrote"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise _unusable(f"'{path}' holds a single array", remedy)
        with file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise _unusable(f"there is no file '{path}'", remedy) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unusable(f"'{path}' can not be read: {error}", remedy) from None
    bad = [name for name, array in found.items() if array.dtype.kind not in "fiub"]
    if bad:
        raise _unusable(f"'{path}': the array '{bad[0]}' holds {found[bad[0]].dtype}, not numbers", remedy)
    return found


def _pick(arrays: dict[str, npt.NDArray[Any]], name: str, *, single: bool) -> npt.NDArray[Any] | None:
    for key in (name, f"input_{name}", *(("x",) if single else ())):
        if key in arrays:
            return arrays[key]
    return None


def _numbers(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    wide: dict[str, type[np.generic]] = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
    return np.ascontiguousarray(array, dtype=wide[array.dtype.kind])


def _unusable(what: str, remedy: str) -> TrainingError:
    return TrainingError(Problem("PQ410", what, remedy))
