"""The only door through which a graph is edited.

A `Rewriter` keeps a journal of the nodes it made, changed or removed; the `Pipeline` compares it with what it finds and
names a pass that edited behind its back. New nodes inherit the provenance of the node they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pquant_fx.errors import Problem
from pquant_fx.graph.dialect import attribute_at, forget_answers, module_of
from pquant_fx.graph.info import KEY, info, place

__all__ = ["JOURNAL", "OWN", "Rewriter", "is_own_constant", "notes_of"]

JOURNAL = "pquant_fx.journal"
_NOTES = "pquant_fx.notes"
OWN = "pq"  # the reserved child of the model that holds our modules

M = TypeVar("M", bound=nn.Module)


class Rewriter:
    """Edits `gm` in place. `changed` tells whether anything was edited."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.graph = gm.graph
        forget_answers(gm.graph)
        self._journal: set[str] = gm.meta.setdefault(JOURNAL, set())
        self._here: Node | None = None
        self._fresh: set[Node] = set()
        self.changed = False

    # ---- reading
    def module(self, node: Node | Any, kind: Callable[..., M] = nn.Module) -> M | None:  # type: ignore[assignment]
        """The module that `node` calls, if it is an instance of the class `kind`, else None."""
        found: Any = module_of(self.gm, node) if isinstance(node, Node) else None
        return found if isinstance(found, kind) else None  # type: ignore[arg-type]

    def attribute(self, node: Node) -> Tensor:
        """The parameter or buffer that a `get_attr` node reads."""
        value = attribute_at(self.gm, str(node.target))
        assert isinstance(value, Tensor)
        return value

    # ---- making nodes, all placed before the current one
    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """New nodes go right before `node` and inherit its provenance."""
        outer, self._here = self._here, node
        try:
            with self.graph.inserting_before(node):
                yield
        finally:
            self._here = outer

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """New nodes go right after `node` and inherit its provenance."""
        outer, self._here = self._here, node
        try:
            with self.graph.inserting_before(node.next):
                yield
        finally:
            self._here = outer

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A new node that calls `function`."""
        return self._made(self.graph.call_function(function, args, kwargs))

    def call_module(self, path: str, *args: Any) -> Node:
        """A new node that calls the module at `path` (see `own`)."""
        return self._made(self.graph.call_module(path, args))

    def get_attr(self, path: str) -> Node:
        """A new node that reads the parameter or buffer at `path`."""
        return self._made(self.graph.get_attr(path))

    # ---- modules and constants of ours
    def own(self, path: str, module: nn.Module) -> str:
        """Add a module of ours under the reserved child, at a free name near `path`; returns its full path."""
        wanted = f"{OWN}." + ".".join(part if part.isidentifier() else f"_{part}" for part in path.split(".") if part)
        full, n = wanted, 1
        while _exists(self.gm, full):
            n += 1
            full = f"{wanted}_{n}"
        self.gm.add_submodule(full, module)
        self.changed = True
        return full

    def disown(self, path: str) -> None:
        """Drop the module of ours at `path` when no node calls it any more."""
        owner, _, name = path.rpartition(".")
        if path.startswith(f"{OWN}.") and not any(n.target == path for n in self.graph.nodes):
            delattr(self.gm.get_submodule(owner), name)
            self.changed = True

    def exchange(self, path: str, module: nn.Module) -> None:
        """Let every node that calls the module at `path` call `module` instead."""
        owner, _, name = path.rpartition(".")
        setattr(self.gm.get_submodule(owner), name, module)
        self.changed = True

    def constant(self, path: str, value: Tensor) -> Node:
        """A `get_attr` node that reads `value`, kept as a buffer of ours near `path`."""
        holder = nn.Module()
        holder.register_buffer("value", value)
        return self.get_attr(f"{self.own(path, holder)}.value")

    # ---- edits
    def replace(self, old: Node, new: Node) -> None:
        """Let every user of `old` use `new`; the new node takes over provenance and, when `old` dies of it, the name."""
        if KEY in old.meta:
            new.meta[KEY] = old.meta[KEY]
        for user in list(old.users):
            if user is not new:
                self.redirect(user, old, new)
        self.erase_if_dead(old)
        if not old.users:
            self.rename(new, old.name)

    def rename(self, node: Node, name: str) -> None:
        """Give a node that this rewriter made the name of one that is gone (operators' own `__names__` excepted)."""
        if node in self._fresh and not name.startswith("__"):
            self._journal.add(name)
            node.name = name

    def inherit(self, new: Node, like: Node) -> None:
        """Let `new` carry all that is known about `like`: provenance, shape, and whether axis 0 is the batch."""
        new.meta.update(like.meta)

    def redirect(self, user: Node, old: Node, new: Node) -> None:
        """Let one user take `new` wherever it took `old`."""
        user.replace_input_with(old, new)
        self._touch(user)

    def set_args(self, node: Node, *args: Any, **kwargs: Any) -> None:
        """Give `node` new arguments."""
        node.args, node.kwargs = args, kwargs
        self._touch(node)

    def erase_if_dead(self, node: Node) -> None:
        """Remove `node` when nothing uses it."""
        if not node.users and node.op != "output":
            self._touch(node)
            self.graph.erase_node(node)

    def remove(self, node: Node) -> None:
        """Drop an identity: its users take its first input."""
        source = node.args[0]
        assert isinstance(source, Node)
        for user in list(node.users):
            self.redirect(user, node, source)
        self.erase_if_dead(node)

    def sweep(self) -> None:
        """Remove everything that no output depends on (placeholders stay: they are the interface)."""
        for node in reversed(list(self.graph.nodes)):
            if node.op not in ("placeholder", "output"):
                self.erase_if_dead(node)

    # ---- telling the user
    def note(self, code: str, what: str, remedy: str, node: Node) -> None:
        """Say what the pass decided at `node`: the compiled model shows it among its `notes`. The same note counts once."""
        made = Problem(code, what, remedy, place(node), "info")
        if made not in notes_of(self.gm):
            self.gm.meta[_NOTES] = (*notes_of(self.gm), made)

    # ---- bookkeeping
    def _made(self, node: Node) -> Node:
        if self._here is not None:
            node.meta[KEY] = info(self._here).with_shape(None)
        self._fresh.add(node)
        self._touch(node)
        return node

    def _touch(self, node: Node) -> None:
        self._journal.add(node.name)
        self.changed = True


def notes_of(gm: GraphModule) -> tuple[Problem, ...]:
    """What passes noted about the graph, in order."""
    found: tuple[Problem, ...] = gm.meta.get(_NOTES, ())
    return found


def is_own_constant(node: Node) -> bool:
    """Whether `node` reads a constant that a pass made (see `Rewriter.constant`), no parameter of the user's model."""
    return node.op == "get_attr" and str(node.target).startswith(f"{OWN}.")


def _exists(gm: GraphModule, path: str) -> bool:
    owner: Any = gm
    for part in path.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True
