"""Passes and pipelines: a pass is a callable that edits a graph through the `Rewriter`; a pipeline is a pass made of passes.

After each pass the pipeline removes dead nodes, compares the edits with the rewriter's journal, lints, verifies the
dialect, recompiles, and, for a pass that declares `exact`, compares results with those before it (see `exactness`).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch.fx import GraphModule, Node

from pquant_fx.errors import PassError, Place, Problem
from pquant_fx.graph.dialect import module_of
from pquant_fx.graph.exactness import Examples, check_exact
from pquant_fx.graph.info import place
from pquant_fx.graph.rewriter import JOURNAL, Rewriter
from pquant_fx.graph.verify import verify
from pquant_fx.registry import Registry

__all__ = ["PASSES", "Observer", "Pass", "Pipeline", "Rewrite", "pass_name", "rewrite"]

PASSES: Registry[Callable[[GraphModule], bool]] = Registry("passes")
"""Passes of installed packages, by name (entry-point group `pquant_fx.passes`)."""


@runtime_checkable
class Pass(Protocol):
    """What a pass is: edits `gm` in place through a `Rewriter`, returns whether something changed.

    Optional attributes: `name`; `exact` (True where results may not change, "eval" where they may not in evaluation only);
    `requires` (names of earlier passes).
    """

    def __call__(self, gm: GraphModule, /) -> bool: ...


Exact = bool | Literal["eval"]
_CHECKED: dict[Exact, tuple[bool, ...]] = {False: (), True: (False, True), "eval": (False,)}
"""What `exact` promises: the modes to check, eval (False) and train (True)."""

Rule = Callable[[Node, Rewriter], Node | None]
_Snapshot = dict[str, tuple[str, str, str]]


@dataclass(frozen=True)
class Rewrite:
    """A pass made of one rule `fn(node, rw) -> replacement | None`, applied to every node that calls one of `targets`.

    A target is a function of the dialect or a module class; None as result leaves the node as it is.
    """

    rule: Rule
    targets: tuple[Any, ...]
    exact: Exact = False
    requires: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.rule.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.rule.__doc__

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            if not node.users and node.op != "output":
                continue
            if self._matches(gm, node):
                with rw.before(node):
                    new = self.rule(node, rw)
                if new is not None and not isinstance(new, Node):
                    what = f"the pass '{self.name}' returned {type(new).__name__}, not a node"
                    raise PassError(Problem("PQ601", what, "return what rw.call(...) gave, or None to leave the node alone", place(node)))
                if new is not None and new is not node:
                    rw.replace(node, new)
        return rw.changed

    def _matches(self, gm: GraphModule, node: Node) -> bool:
        if node.op == "call_function":
            return any(node.target is t for t in self.targets)
        module = module_of(gm, node)
        return module is not None and isinstance(module, tuple(t for t in self.targets if inspect.isclass(t)))


def rewrite(*targets: Any, exact: Exact = False, requires: tuple[str, ...] = ()) -> Callable[[Rule], Rewrite]:
    """Decorator: `fn(node, rw) -> Node | None` becomes a pass over all nodes that call one of `targets`.

    exact: the pipeline checks on the example inputs, in train and in eval ("eval": there only), that results did not change.
    requires: names of passes that must stand earlier in the pipeline.
    """

    def wrap(rule: Rule) -> Rewrite:
        return Rewrite(rule, targets, exact, requires)

    return wrap


def pass_name(step: Pass) -> str:
    """The name of a pass in a pipeline: its `name`, else its function name, else its class name in snake case."""
    name = getattr(step, "name", None) or getattr(step, "__name__", None)
    if isinstance(name, str):
        return name
    text = type(step).__name__
    return "".join("_" + c.lower() if c.isupper() and n else c.lower() for n, c in enumerate(text))


class Observer(Protocol):
    """Watches a pipeline: called with a pass's name, the graph, whether it changed and the seconds it took.

    The first call, named "input", shows the graph before any pass.
    """

    def __call__(self, name: str, gm: GraphModule, changed: bool, seconds: float, /) -> None: ...


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; itself a pass. Frozen: `insert`, `remove`, `swap` and `observe` return a new pipeline.

    Building one checks that names are unique and that every `requires` stands earlier: PassError (PQ602).
    """

    passes: tuple[Pass, ...] = ()
    observers: tuple[Observer, ...] = ()
    name: str = "pipeline"
    exact: bool = False

    def __init__(self, passes: Sequence[Pass] = (), observers: Sequence[Observer] = (), name: str = "pipeline") -> None:
        for field, value in (("passes", tuple(passes)), ("observers", tuple(observers)), ("name", name), ("exact", False)):
            object.__setattr__(self, field, value)
        self._check_order()

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(pass_name(p) for p in self.passes)

    def insert(self, step: Pass | str, *, before: str | None = None, after: str | None = None) -> Pipeline:
        """A pipeline with `step` (a pass, or the name of an installed one) before or after another; at the end by default."""
        found: Pass = PASSES[step] if isinstance(step, str) else step
        if before is not None and after is not None:
            raise PassError(Problem("PQ602", "both `before` and `after` were given", "give one of them"))
        at = len(self.passes)
        if before is not None:
            at = self._index(before)
        elif after is not None:
            at = self._index(after) + 1
        return Pipeline((*self.passes[:at], found, *self.passes[at:]), self.observers, self.name)

    def remove(self, name: str) -> Pipeline:
        """A pipeline without the pass `name`. Raises PassError (PQ602) when there is none, or another pass requires it."""
        at = self._index(name)
        return Pipeline(self.passes[:at] + self.passes[at + 1 :], self.observers, self.name)

    def swap(self, name: str, step: Pass) -> Pipeline:
        """A pipeline in which `step` stands where the pass `name` stood."""
        at = self._index(name)
        return Pipeline((*self.passes[:at], step, *self.passes[at + 1 :]), self.observers, self.name)

    def observe(self, *observers: Observer) -> Pipeline:
        """A pipeline that reports to `observers` as well."""
        return Pipeline(self.passes, (*self.observers, *observers), self.name)

    def __call__(self, gm: GraphModule, examples: Examples | None = None) -> bool:
        """Run all passes; `examples` (positional inputs) enable the checks of exact passes."""
        changed = False
        for observer in self.observers:
            observer("input", gm, False, 0.0)
        for step in self.passes:
            changed |= self._run(step, gm, examples)
        return changed

    def _run(self, step: Pass, gm: GraphModule, examples: Examples | None) -> bool:
        if isinstance(step, Pipeline):
            return _watched(step, self.observers)(gm, examples)
        name = pass_name(step)
        before = _snapshot(gm)
        gm.meta[JOURNAL] = set()
        modes = _CHECKED[getattr(step, "exact", False)]
        checked = check_exact(gm, examples, name, modes) if modes and examples is not None else None
        start = time.perf_counter()
        step(gm)
        Rewriter(gm).sweep()
        after = _snapshot(gm)
        changed = before != after
        if changed:
            _check_journal(name, before, after, gm)
            gm.graph.lint()
            verify(gm)
            gm.recompile()
        seconds = time.perf_counter() - start
        if changed and checked is not None:
            checked()
        for observer in self.observers:
            observer(name, gm, changed, seconds)
        return changed

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise PassError(Problem("PQ602", f"the pipeline has no pass '{name}'", f"its passes are {', '.join(self.names)}"))
        return self.names.index(name)

    def _check_order(self) -> None:
        problems, seen = [], set()
        for step in self.passes:
            name, exact = pass_name(step), getattr(step, "exact", False)
            if exact not in _CHECKED:
                problems.append(Problem("PQ602", f"the pass '{name}' declares exact={exact!r}", "exact is True, False or 'eval'"))
            if name in seen:
                problems.append(Problem("PQ602", f"the pass '{name}' stands twice in the pipeline", "remove one, or give it another name"))
            for needed in getattr(step, "requires", ()):
                if needed not in seen:
                    remedy = f"insert it after '{needed}'" if needed in self.names else f"add '{needed}' before it"
                    problems.append(Problem("PQ602", f"the pass '{name}' needs '{needed}' to run before it", remedy))
            seen.add(name)
        if problems:
            raise PassError(problems)


def _watched(pipeline: Pipeline, observers: tuple[Observer, ...]) -> Pipeline:
    """An inner pipeline reports to the observers of the outer one as well."""
    return Pipeline(pipeline.passes, (*pipeline.observers, *observers), pipeline.name)


def _snapshot(gm: GraphModule) -> _Snapshot:
    """Every node by name as op, target and arguments: what an edit can change."""
    return {n.name: (n.op, f"{n.target}", f"{n.args}{n.kwargs}") for n in gm.graph.nodes}


def _check_journal(name: str, before: _Snapshot, after: _Snapshot, gm: GraphModule) -> None:
    """Raise PassError (PQ603) when a node was made, changed or removed behind the Rewriter's back."""
    journal: set[str] = gm.meta[JOURNAL]
    edited = [n for n in {**before, **after} if before.get(n) != after.get(n) and n not in journal]
    if not edited:
        return
    nodes = {n.name: n for n in gm.graph.nodes}
    raise PassError(
        [
            Problem(
                "PQ603",
                f"the pass '{name}' edited '{n}' outside the Rewriter",
                "edit through the Rewriter's methods (call, replace, set_args, remove): it keeps provenance and the journal",
                place(nodes[n]) if n in nodes else Place(n),
            )
            for n in edited
        ]
    )
