"""`trace`: from a user's model and example inputs to a graph that means the same in training and in evaluation."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from pquant_fx.errors import Place, Problem, TraceError
from pquant_fx.graph.copies import adopt_tree
from pquant_fx.graph.shapes import Shapes
from pquant_fx.trace.inputs import Arguments, match_arguments
from pquant_fx.trace.modes import join_modes
from pquant_fx.trace.recorder import Recorder

__all__ = ["TraceResult", "trace"]

_INPLACE = "was_inplace"


@dataclass(frozen=True)
class CustomFunction:
    """A user's torch.autograd.Function as one call, so that its own backward is kept."""

    function: type[torch.autograd.Function]

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)  # type: ignore[no-untyped-call]

    @property
    def __name__(self) -> str:
        return self.function.__name__


@dataclass(frozen=True)
class TraceResult:
    """A traced model.

    graph_module: the graph over a deep copy of the user's module tree. notes: what was assumed (PQ102, PQ103, PQ105).
    inputs: input name -> shape of one sample; the graph is right for these shapes at any batch size, and for no others.
    """

    graph_module: GraphModule
    notes: tuple[Problem, ...]
    inputs: dict[str, tuple[int, ...]]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.inputs)


def trace(model: nn.Module, examples: Mapping[str, Tensor], leaves: tuple[type[nn.Module], ...] = ()) -> TraceResult:
    """Record `model.forward` as a graph, without computing anything and without touching `model`.

    examples: input name -> tensor, batch first; only shapes, dtypes and devices are used. leaves: classes kept whole.
    The code runs twice, in train and in eval, on shapes of two batch sizes each. Raises TraceError with all problems found
    (PQ101, PQ104 to PQ107, PQ409), each with module path, the user's line and a remedy.
    """
    arguments = match_arguments(model, examples)
    root = _copy(model)
    shapes = Shapes()
    n = next((x.shape[0] for x in examples.values() if x.dim()), 1)
    with _kept(root), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the code warns about, it warns about when it runs
        _hold_inplace(root)
        evaluated = _record(root.eval(), shapes, (n, 1 if n > 1 else 2), examples, arguments, leaves)
        trained = _record(root.train(), shapes, (max(n, 2), max(n, 2) + 1), examples, arguments, leaves)
    _raise_all(evaluated, trained)
    graph, modules = join_modes(trained, evaluated)
    for target, module in modules.items():
        _add(root, target, module)
    gm = _module(root, graph, type(model).__name__)
    shapes_by_name = {str(p.target): tuple(examples[str(p.target)].shape[1:]) for p in graph.find_nodes(op="placeholder")}
    return TraceResult(gm, _notes(arguments, evaluated), shapes_by_name)


def _copy(model: nn.Module) -> nn.Module:
    if hasattr(model, "pq"):
        what = "the model has an attribute 'pq', the name under which the compiler adds its own modules"
        raise TraceError(Problem("PQ107", what, "rename it", Place(module="pq")))
    for path, module in model.named_modules():
        if any(isinstance(p, nn.UninitializedParameter) for p in module._parameters.values()):
            what = f"the {type(module).__name__} has no parameters yet"
            raise TraceError(Problem("PQ107", what, "run the model once on real inputs before compiling it", Place(module=path)))
    try:
        return copy.deepcopy(model)
    except Exception as error:
        what = f"the model can not be copied: {type(error).__name__}: {error}"
        raise TraceError(Problem("PQ107", what, "make copy.deepcopy(model) work", Place(module=""))) from error


def _record(
    root: nn.Module,
    shapes: Shapes,
    batches: tuple[int, int],
    examples: Mapping[str, Tensor],
    arguments: Arguments,
    leaves: tuple[type[nn.Module], ...],
) -> Recorder:
    """One run of forward in the mode that `root` is in; placeholders stand in the order of forward's arguments."""
    recorder = Recorder(root, shapes, batches, leaves)
    values = {}
    for name in (*arguments.positional, *arguments.keywords.values()):
        low, high = (_sized(shapes.meta(examples[name]), n) for n in batches)
        values[name] = recorder.placeholder(name, low, high, examples[name].device)
    args = tuple(values[n] for n in arguments.positional)
    kwargs = {k: values[n] for k, n in arguments.keywords.items()}
    with _patched(recorder) as call, torch.enable_grad(), recorder.shadows():
        result = recorder.run(args, kwargs, call)
    recorder.graph.output(result)
    return recorder


@contextmanager
def _patched(recorder: Recorder) -> Iterator[Callable[..., Any]]:
    """Route module calls, attribute writes and custom autograd functions of this thread through the recorder meanwhile."""
    call, write, apply = nn.Module.__call__, nn.Module.__setattr__, torch.autograd.Function.__dict__["apply"]
    thread = threading.get_ident()

    def traced_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread or not recorder.is_active():
            return call(module, *args, **kwargs)
        return recorder.call_module(module, call, args, kwargs)

    def traced_write(module: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() == thread and recorder.is_active():
            recorder.attribute_set(module, name, value)
        write(module, name, value)

    def traced_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        original = apply.__get__(None, cls)
        if threading.get_ident() != thread or not recorder.is_active():
            return original(*args, **kwargs)
        return recorder.call(CustomFunction(cls), *args, **kwargs)

    with ExitStack() as stack:
        for owner, name, new, old in (
            (nn.Module, "__call__", traced_call, call),
            (nn.Module, "__setattr__", traced_write, write),
            (torch.autograd.Function, "apply", classmethod(traced_apply), apply),
        ):
            stack.callback(setattr, owner, name, old)
            setattr(owner, name, new)
        yield call


@contextmanager
def _kept(root: nn.Module) -> Iterator[None]:
    """Put back every attribute of every module that forward sets while it runs."""
    modules = list(root.modules())
    before = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers), dict(m._modules)) for m in modules]
    try:
        yield
    finally:
        for m, attributes, parameters, buffers, children in before:
            inplace = m.__dict__.get("inplace")
            m.__dict__.clear()
            m.__dict__.update(attributes)
            _refill(m._parameters, parameters)
            _refill(m._buffers, buffers)
            _refill(m._modules, children)
            if inplace is False and attributes.get("inplace") is True:
                m.__dict__["inplace"] = False


def _refill(table: dict[str, Any], kept: dict[str, Any]) -> None:
    table.clear()
    table.update(kept)


def _hold_inplace(root: nn.Module) -> None:
    """torch.nn's in-place layers of our copy write out of place; the trace accounts for what they would have overwritten."""
    for module in root.modules():
        if type(module).__module__.startswith("torch.nn.") and module.__dict__.get("inplace") is True:
            module.__dict__["inplace"] = False
            module.__dict__[_INPLACE] = True


def _sized(meta: Tensor, batch: int) -> Tensor:
    """The input at another batch size. Always a new tensor: inputs that the caller shares do not alias inside the model."""
    if not meta.dim() or meta.shape[0] == batch:
        return torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device="meta")
    return torch.empty((batch, *meta.shape[1:]), dtype=meta.dtype, device="meta")


def _raise_all(*recorders: Recorder) -> None:
    found: dict[tuple[str, str | None, str | None], Problem] = {}
    for recorder in recorders:
        for p in recorder.refusals.problems:
            found.setdefault((p.code, p.place.module, p.place.line), p)
    if found:
        raise TraceError(list(found.values()))


def _notes(arguments: Arguments, recorder: Recorder) -> tuple[Problem, ...]:
    defaults = [
        Problem(
            "PQ103",
            f"argument '{name}' has default {value!r} and no example input: compiled without it",
            f"pass an example for '{name}' to make it an input",
            Place(module=""),
            "info",
        )
        for name, value in arguments.defaults.items()
    ]
    return (*defaults, *recorder.refusals.notes)


def _module(root: nn.Module, graph: Graph, name: str) -> GraphModule:
    """A GraphModule that holds the whole tree of `root`: its very module, parameter and buffer objects."""
    gm = GraphModule(nn.Module(), Graph(), name)
    adopt_tree(gm, root)
    gm.graph = graph
    gm.training = root.training
    return gm


def _add(root: nn.Module, target: str, module: nn.Module) -> None:
    owner, _, name = target.rpartition(".")
    at = root
    for part in owner.split("."):
        if part not in at._modules:
            at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    at.add_module(name, module)
