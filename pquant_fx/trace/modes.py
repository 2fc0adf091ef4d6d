"""One graph for training and evaluation, from a trace of each: what differs by mode becomes a module that knows its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn import functional as F

from pquant_fx.errors import Problem, TraceError
from pquant_fx.graph.by_mode import ByMode, Slot
from pquant_fx.graph.info import KEY, info, place
from pquant_fx.trace.recorder import Recorder

__all__ = ["ByMode", "Constant", "join_modes"]

_DROPOUTS: dict[Callable[..., Any], type[nn.Module]] = {
    F.dropout: nn.Dropout,
    torch.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_BY_MODE = (F.batch_norm, torch.batch_norm, F.instance_norm, F.rrelu, F.scaled_dot_product_attention, F.multi_head_attention_forward)


class Constant(nn.Module):
    """A tensor that the user's forward made: a buffer of the graph, made anew by every compile, so not in checkpoints."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)


def join_modes(trained: Recorder, evaluated: Recorder) -> tuple[Graph, dict[str, nn.Module]]:
    """The graph of both modes, and the modules of ours that it calls, by path.

    Dropout called in training only becomes a dropout module; functions with a `training` argument become `ByMode`.
    Raises TraceError: PQ104 at the first other difference, PQ105 for an unused call that moves statistics which others read.
    """
    lost = _lost_statistics(trained.graph, _sweep(trained.graph), trained.root)
    if lost:
        raise TraceError(lost)
    _sweep(evaluated.graph)
    pairs = _Alignment(trained, evaluated)
    pairs.run()
    modules: dict[str, nn.Module] = {}
    for path, value in trained.constants.items():
        modules[path.removesuffix(".value")] = Constant(value)
    for node, other in pairs.switched:
        _switch(trained.graph, node, other, modules)
    for node in pairs.train_only:
        if node.op == "call_function":
            _switch(trained.graph, node, None, modules)
    return trained.graph, modules


class _Alignment:
    """Walks two graphs side by side. `switched`: nodes that differ in constants of their mode; `train_only`: dropouts."""

    def __init__(self, trained: Recorder, evaluated: Recorder) -> None:
        self.trained, self.evaluated = trained, evaluated
        self.to_train: dict[Node, Node] = {}
        self.switched: list[tuple[Node, Node]] = []
        self.train_only: dict[Node, None] = {}

    def run(self) -> None:
        ts, es = list(self.trained.graph.nodes), list(self.evaluated.graph.nodes)
        i = j = 0
        while i < len(ts) or j < len(es):
            t, e = (ts[i] if i < len(ts) else None), (es[j] if j < len(es) else None)
            if t is not None and e is not None and self._same(t, e):
                self.to_train[e] = t
                t.meta[KEY] = e.meta.get(KEY, t.meta.get(KEY))
                i, j = i + 1, j + 1
            elif t is not None and self._is_dropout(t, self.trained):
                self.train_only[t] = None
                t.meta[KEY] = info(t).with_shape(info(self._base(t)).shape)
                i += 1
            elif e is not None and self._is_dropout(e, self.evaluated):
                self.to_train[e] = self.to_train[e.args[0]]
                j += 1
            else:
                raise TraceError(_difference(t, e))

    def _base(self, t: Node) -> Node:
        while t in self.train_only:
            t = t.args[0]  # type: ignore[assignment]
        return t

    def _same(self, t: Node, e: Node) -> bool:
        if t.op != e.op or t.target != e.target:
            return False
        ours, theirs = self.trained.constants.get(str(t.target)), self.evaluated.constants.get(str(e.target))
        if t.op == "get_attr" and ours is not None and theirs is not None:
            return ours.shape == theirs.shape and torch.equal(ours, theirs)
        if self._equal((t.args, t.kwargs), (e.args, e.kwargs)):
            return True
        if (t.target in _DROPOUTS or t.target in _BY_MODE) and self._equal(_nodes_of(t), _nodes_of(e)) and _layout(t) == _layout(e):
            self.switched.append((t, e))
            return True
        return False

    def _equal(self, a: Any, b: Any) -> bool:
        if isinstance(a, Node) or isinstance(b, Node):
            return isinstance(a, Node) and b in self.to_train and self._base(a) is self._base(self.to_train[b])
        if isinstance(a, (tuple, list)):
            return type(a) is type(b) and len(a) == len(b) and all(self._equal(x, y) for x, y in zip(a, b))
        if isinstance(a, dict):
            return type(a) is type(b) and list(a) == list(b) and all(self._equal(v, b[k]) for k, v in a.items())
        if isinstance(a, slice):
            return isinstance(b, slice) and self._equal((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        return type(a) is type(b) and (a == b or a != a)

    def _is_dropout(self, node: Node, recorder: Recorder) -> bool:
        if node.op == "call_module":
            return isinstance(recorder.root.get_submodule(str(node.target)), tuple(set(_DROPOUTS.values())))
        training = recorder is self.trained
        return node.op == "call_function" and node.target in _DROPOUTS and _call_of(node)["training"] is training


def _switch(graph: Graph, node: Node, other: Node | None, modules: dict[str, nn.Module]) -> None:
    """Replace a function call whose constants depend on the mode by a call of a module."""
    assert callable(node.target)
    if node.target in _DROPOUTS:
        module: nn.Module = _DROPOUTS[node.target](_call_of(node)["p"])
        values: tuple[Any, ...] = (node.args[0],)
        kind = "dropout"
    else:
        assert other is not None
        arguments = [("", a) for a in node.args] + list(node.kwargs.items())
        values = tuple(a for _, a in arguments if isinstance(a, Node))
        train, evaluation = (tuple(Slot if isinstance(a, Node) else a for a in (*n.args, *n.kwargs.values())) for n in (node, other))
        module = ByMode(node.target, tuple(name for name, _ in arguments), train, evaluation)
        kind = str(getattr(node.target, "__name__", "function"))
    count = sum(name.startswith(f"pq.{kind}_") for name in modules)
    path = f"pq.{kind}_{count + 1}"
    modules[path] = module
    with graph.inserting_before(node):
        new = graph.call_module(path, values)
    new.meta[KEY] = node.meta[KEY]
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _call_of(node: Node) -> dict[str, Any]:
    """p and training of a functional dropout."""
    named = dict(zip(("input", "p", "train" if node.target is torch.dropout else "training"), node.args))
    named.update(node.kwargs)
    training = named.get("training", named.get("train", node.target not in (F.alpha_dropout, F.feature_alpha_dropout)))
    return {"p": named.get("p", 0.5), "training": training}


def _nodes_of(node: Node) -> list[Node]:
    return [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Node)]


def _layout(node: Node) -> list[Any]:
    return [isinstance(a, Node) for a in node.args] + [(k, isinstance(a, Node)) for k, a in node.kwargs.items()]


def _difference(t: Node | None, e: Node | None) -> Problem:
    node = t if t is not None and t.op != "output" else e
    assert node is not None
    if node.op == "output":
        node = t if t is not None else node
    name = getattr(node.target, "__name__", str(node.target))
    where = place(node)
    what = f"forward reads self.training: the graphs of train and eval differ at '{name}'"
    return Problem("PQ104", what, "use a module that knows its mode (nn.Dropout), or keep the class whole: leaves=(TheClass,)", where)


def _sweep(graph: Graph) -> list[Node]:
    """Drop what no output depends on; returns the calls among it, in no use any more but to be read."""
    dropped = []
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
            dropped.append(node)
    return [n for n in dropped if n.op.startswith("call")]


def _lost_statistics(graph: Graph, dropped: list[Node], root: nn.Module) -> list[Problem]:
    """In training, a normalisation whose result is unused still moves its running statistics: fine, if nobody else reads them."""
    moved = {node: found for node in dropped if (found := _running_statistics(node, root))}
    read = set[int]().union(*(_running_statistics(n, root) for n in graph.nodes)) if moved else set[int]()
    what = "the result of this normalisation is not used, but in training it moves statistics that another call reads"
    remedy = "delete the unused call, or return its result as well"
    return [Problem("PQ105", what, remedy, place(node)) for node, found in moved.items() if found & read]


def _running_statistics(node: Node, root: nn.Module) -> set[int]:
    """The identities of the running means that `node` moves in training."""
    if node.op == "call_module":
        norms = [m for m in root.get_submodule(str(node.target)).modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        return {id(m.running_mean) for m in norms if m.running_mean is not None}
    return set()
