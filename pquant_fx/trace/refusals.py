"""What a trace finds: problems that a user must mend, and notes on what it assumed. Every message has a code, a place and a remedy."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from pquant_fx.errors import Place, Problem
from pquant_fx.trace.lines import Lines

__all__ = ["Refusals", "Stop"]

_ENDLESS = 1000  # the same problem this often at one line: a loop that its own refusal keeps alive


class Stop(Exception):
    """Ends a trace that has problems and can not go on."""


class Refusals:
    """Collects problems and notes, each once per line, and gives back something to go on with."""

    def __init__(self, lines: Lines) -> None:
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self._lines = lines
        self._times: Counter[tuple[str, str | None]] = Counter()
        self._failed_at: Place | None = None

    def add(self, code: str, what: str, remedy: str, place: Place) -> None:
        self._times[code, place.line] += 1
        if self._times[code, place.line] == 1:
            self.problems.append(Problem(code, what, remedy, place))
        if self._times[code, place.line] > _ENDLESS:
            raise Stop

    def note(self, code: str, what: str, remedy: str, place: Place) -> None:
        self._times[code, place.line] += 1
        if self._times[code, place.line] == 1:
            self.notes.append(Problem(code, what, remedy, place, "info"))

    # ---- values
    def value_read(self, name: str, place: Place, args: tuple[Any, ...]) -> Any:
        """PQ101: Python asks for the value of a tensor."""
        what = f"'{self._lines.source()}' depends on tensor values: a circuit can not branch"
        remedy = f"use torch.where (better torch.maximum or F.relu, which circuits have), or keep the module whole: {_leaf(place)}"
        self.add("PQ101", what, remedy, place)
        if name in ("__bool__", "__contains__", "is_nonzero", "equal", "allclose"):
            return False
        if name in ("__int__", "__index__"):
            return 1
        if name in ("item", "__float__"):
            return 1.0
        if name in ("__complex__", "_assert"):
            return None if name == "_assert" else 1j
        raise Stop

    def data_dependent(self, name: str, place: Place) -> Stop:
        """PQ101: the shape of a result depends on values."""
        what = f"the shape of the result of '{name}' depends on tensor values: a circuit has fixed shapes"
        self.add("PQ101", what, f"multiply by a mask or use torch.where, or keep the module whole: {_leaf(place)}", place)
        return Stop()

    # ---- the batch
    def batch_needed(self, use: str, place: Place) -> None:
        """PQ106: a number that depends on the batch size is asked for."""
        what = f"'{self._lines.source()}' fixes the batch size ({use}): the same circuit serves every batch"
        self.add("PQ106", what, f"operate on the whole batch at once, or keep the module whole: {_leaf(place)}", place)

    def iterated(self, length: int, place: Place) -> None:
        """PQ106: a loop over the batch axis."""
        what = f"'{self._lines.source()}' takes the batch apart ({length} parts at the example's batch size)"
        self.add("PQ106", what, f"operate on the whole batch at once (torch.vmap, matmul, einsum), or {_leaf(place)}", place)

    def rank_depends(self, low: Any, high: Any, batches: tuple[int, int], place: Place) -> None:
        """PQ106: a shape that loses an axis at some batch size."""
        shapes = " but ".join(f"{tuple(getattr(t, 'shape', ()))} at batch {b}" for t, b in zip((low, high), batches))
        what = f"the number of axes depends on the batch size: {shapes} in '{self._lines.source()}'"
        self.add("PQ106", what, "name the axes, e.g. x.squeeze(-1) in place of x.squeeze()", place)

    # ---- writing
    def written(self, name: str, place: Place, target: Tensor | None) -> Any:
        """PQ105: a write that has no value form."""
        source = self._lines.source()
        what = f"'{source}' writes into a tensor" if name == "__setitem__" else f"'{source}' writes into a tensor ({name})"
        remedy = "build the value instead: torch.cat([zeros, y[:, 1:]], 1), torch.where(mask, new, y), or torch.stack"
        self.add("PQ105", what, f"{remedy}; or keep the module whole: {_leaf(place)}", place)
        return target

    def stale(self, line: str | None, place: Place) -> None:
        """PQ105: a view of a tensor that was overwritten meanwhile is used."""
        what = f"a tensor is used that shares memory with one written in place at {line}: its value would depend on the order"
        self.add("PQ105", what, f"write out of place at {line} (x = x + y, inplace=False), or clone() first", place)

    def buffer_written(self, name: str, place: Place) -> None:
        """PQ105: forward changes a parameter or a buffer."""
        what = f"forward writes the parameter or buffer '{name}': a circuit has no such state"
        self.add("PQ105", what, f"update it outside of forward, or keep the module whole: {_leaf(place)}", place)

    def attribute_written(self, module: str, name: str, place: Place) -> None:
        """PQ105, a note: forward keeps something on the module."""
        what = f"forward sets the attribute '{name}' of module '{module or '<model>'}': the compiled model does not keep it"
        self.note("PQ105", what, "return the value from forward when you need it", place)

    # ---- modules
    def unregistered(self, module: nn.Module, place: Place) -> None:
        """PQ107: a module with parameters that the model does not know."""
        what = f"a {type(module).__name__} with parameters is called but is no submodule of the model"
        self.add("PQ107", what, "make it an attribute in __init__ (lists: nn.ModuleList)", place)

    def escaped(self, place: Place) -> Stop:
        """PQ107: a value went through code that does not show its operations (torch.vmap, TorchScript)."""
        what = f"'{self._lines.source()}' uses a value computed where tracing can not look (torch.vmap, TorchScript, a C++ extension)"
        self.add("PQ107", what, f"write it with ordinary torch functions, or keep the module whole: {_leaf(place)}", place)
        return Stop()

    def argument(self, value: Any, place: Place) -> Stop:
        """PQ107: a torch function gets a module, a function or a generator."""
        what = f"'{self._lines.source()}' passes a {type(value).__name__} to a torch function"
        self.add("PQ107", what, f"call it directly (checkpoint: use_reentrant=False), or keep the module whole: {_leaf(place)}", place)
        return Stop()

    def output(self, value: Any) -> None:
        """PQ107: forward returns an object that a graph can not build."""
        what = f"forward returns a {type(value).__name__}"
        self.add("PQ107", what, "return tensors in tuples, lists, dicts, named tuples or dataclasses", Place(module=""))

    def no_tensor(self, line: str | None) -> None:
        """PQ107: forward returns nothing that was computed."""
        self.add("PQ107", "forward returns no tensor", "return the result; is a `return` missing?", Place(module="", line=line))

    def autocast(self, place: Place) -> None:
        """PQ107: precision changes inside forward."""
        what = "forward switches autocast: the precision of part of the model would be lost"
        self.add("PQ107", what, "use torch.autocast around the call of the compiled model", place)

    def passing(self, place: Place) -> None:
        """Remember the innermost module that an exception left."""
        if self._failed_at is None:
            self._failed_at = place

    def failed(self, error: Exception, leaves: tuple[type[nn.Module], ...]) -> None:
        """PQ107: the user's code raised. Not reported when it follows from an earlier problem."""
        if self.problems:
            return
        line = self._lines.of_exception(error.__traceback__)
        module = self._failed_at.module if self._failed_at is not None else ""
        text = str(error).strip().splitlines()
        what = f"forward raised {type(error).__name__}{': ' + text[0] if text else ''}"
        remedy = f"check that the model runs on inputs of this shape; a module that can not be traced stays whole with {_leaf(None)}"
        self.problems.append(Problem("PQ107", what, remedy, Place(None, module, line)))

    def shape_tested(self, result: bool, place: Place) -> None:
        """PQ102, a note: a test of shapes was answered for this input."""
        what = f"'{self._lines.source()}' specialised to {result} for the shapes of this input"
        self.note("PQ102", what, "compile again for inputs of other shapes", place)


def _leaf(place: Place | None) -> str:
    return "leaves=(TheClass,)" if place is None or not place.module else f"leaves=(type(model.{place.module}),)"
