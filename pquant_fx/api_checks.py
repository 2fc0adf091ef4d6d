"""What `compile` asks of a model before and after tracing: that it is one, that it is healthy, that the graph computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves

from pquant_fx.compiled import CompiledModel
from pquant_fx.errors import InputError, PassError, Place, Problem, TraceError
from pquant_fx.example_inputs import ExampleInputs
from pquant_fx.frozen import FrozenModel
from pquant_fx.graph.constants import evaluating
from pquant_fx.graph.exactness import TOLERANCE, difference, run_isolated, run_precisely
from pquant_fx.graph.info import place
from pquant_fx.graph.inputs import float_type

__all__ = ["compare_with_model", "refuse_no_model", "refuse_unhealthy"]


def refuse_no_model(model: Any) -> None:
    """InputError (PQ409) for what is no nn.Module or compiled already; TraceError (PQ107) for a module whose code is out of reach."""
    if isinstance(model, type):
        raise InputError(Problem("PQ409", f"the model is the class {model.__name__}", f"pass an instance: {model.__name__}(...)"))
    if not isinstance(model, nn.Module):
        raise InputError(Problem("PQ409", f"the model is a {type(model).__name__}", "pass an nn.Module; wrap a function in one"))
    if isinstance(model, CompiledModel | FrozenModel):
        raise InputError(Problem("PQ409", f"the model is a {type(model).__name__} already", "compile the original model", Place(module="")))
    found = _wrapped(model)
    if found is not None:
        raise TraceError(Problem("PQ107", *found, Place(module="")))
    lazy = [
        Problem("PQ107", f"'{name}' has no values yet: its layer is lazy", "run the model once on real inputs", Place(module=_owner(name)))
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if isinstance(t, UninitializedParameter | UninitializedBuffer)
    ]
    if lazy:
        raise TraceError(lazy)


def _wrapped(model: nn.Module) -> tuple[str, str] | None:
    if isinstance(model, torch.jit.ScriptModule):
        return "the model is TorchScript, whose code can not be traced", "pass the Python model that it was made from"
    if "_modules" not in model.__dict__:
        return f"{type(model).__name__}.__init__ did not run nn.Module's", "call super().__init__() first in it"
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        return "the model is wrapped by torch.compile", "pass the original, model._orig_mod; torch.compile what pq.compile returns"
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"the model is wrapped in {type(model).__name__}", "pass model.module, and wrap what pq.compile returns"
    return None


def refuse_unhealthy(gm: GraphModule) -> None:
    """InputError (PQ305) with every parameter and buffer that holds NaN or infinity: it would turn every format into nonsense later.

    A buffer may hold -inf, as masks of attention do; analysis refuses it where it is no mask.
    """
    used = {str(n.target): n for n in reversed(gm.graph.nodes) if n.op in ("get_attr", "call_module")}
    problems = []
    for name, t in (*gm.named_parameters(), *gm.named_buffers()):
        mask = (t == float("-inf")) & (not isinstance(t, nn.Parameter))
        if t.is_floating_point() and not bool((torch.isfinite(t) | mask).all()):
            node = used.get(name, used.get(_owner(name)))
            where = place(node) if node is not None else Place(module=_owner(name))
            problems.append(Problem("PQ305", f"'{name}' holds NaN or infinity", "load a healthy checkpoint", where))
    if problems:
        raise InputError(problems)


def compare_with_model(model: nn.Module, gm: GraphModule, examples: ExampleInputs) -> None:
    """The traced graph against the user's model, in eval: tracing must not have changed the meaning.

    Raises TraceError (PQ107) when the model itself fails, InputError (PQ305) when it gives NaN, PassError (PQ604) when they differ.
    """
    try:
        if any(x.is_floating_point() and x.dtype != float_type(model) for x in examples.tensors.values()):
            _run_as_it_is(model, examples)  # float64 would hide a model that refuses this type
        expected, double = _run_by_name(model, examples)
    except Exception as error:  # whatever the user's code raises, it raises without us as well
        what = f"the model itself fails on the example inputs: {type(error).__name__}: {_first_line(error)}"
        where = _failure_place(model, error.__traceback__)
        raise TraceError(Problem("PQ107", what, "give inputs that model(x) accepts, also in eval mode", where)) from error
    if any(_is_nan(v) for v in tree_leaves(expected)):
        node = _first_nan(gm, examples)
        what = "the model gives NaN on the example inputs"
        remedy = "look at this operation: a division by zero, a logarithm or root of a negative number, a negative variance"
        raise InputError(Problem("PQ305", what, remedy, place(node) if node is not None else Place(module="")))
    worst = difference(expected, run_isolated(gm, examples.few(), False, double))
    if not worst <= TOLERANCE[double]:
        what = f"the traced graph differs from the model by {worst:.3g} in eval mode"
        raise PassError(Problem("PQ604", what, "report this; as a way out list the block in `leaves`"))


class _ByName(nn.Module):
    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Any) -> Any:
        return self.model(**dict(zip(self.names, values)))


def _run_by_name(model: nn.Module, examples: ExampleInputs) -> tuple[Any, bool]:
    return run_precisely(_ByName(model, tuple(examples.tensors)), examples.few(), False)


def _run_as_it_is(model: nn.Module, examples: ExampleInputs) -> None:
    with evaluating(model), torch.no_grad():
        model(**dict(zip(examples.tensors, examples.few())))


# ---- places
def _failure_place(model: nn.Module, trace: TracebackType | None) -> Place:
    """The innermost module of the model that an exception passed through, and the innermost line that is the user's."""
    paths = {id(m): path for path, m in model.named_modules()}
    foreign = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    module, line = "", None
    for frame, number in _frames(trace):
        module = paths.get(id(frame.f_locals.get("self")), module)
        if not frame.f_code.co_filename.startswith(foreign):
            line = f"{Path(frame.f_code.co_filename).name}:{number}"
    return Place(module=module, line=line)


def _frames(trace: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


class _Watch(Interpreter):
    """Runs a graph and remembers the first node whose value holds NaN."""

    found: Node | None = None

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if self.found is None and any(_is_nan(v) for v in tree_leaves(value)):
            self.found = n
        return value


def _first_nan(gm: GraphModule, examples: ExampleInputs) -> Node | None:
    watch = _Watch(gm.eval())
    with torch.no_grad():
        watch.run(*examples.few())
    return watch.found


def _is_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
