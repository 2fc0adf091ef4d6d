"""expand_recurrent: LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014) become their steps, one after the other.

    nn.LSTM   u = W x + (b + b')  for all steps at once;   i, f, g, o = parts of u_t + W' h
              c = sigmoid(f) c + sigmoid(i) tanh(g)        h = sigmoid(o) tanh(c)
    nn.GRU    r, z, n = parts of u_t (b' of r and z in it);   r, z: sigmoid(u_t + W' h)
              n = tanh(u_t + r (W' h + b'))                 h = n + z (h - n)

The state begins at zero. Gates, cell and hidden state have one format for all steps each: the steps are one circuit, or copies.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node

from pquant_fx.config import Config
from pquant_fx.graph.info import info
from pquant_fx.graph.operand_marks import mark_format_group, mark_opaque
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.layer_writer import CanNotWrite, LayerWriter, is_changed, shape_of
from pquant_fx.passes.settings import settings_of

__all__ = ["ExpandRecurrent"]

_KINDS = (nn.LSTM, nn.GRU)
_ZEROS = (torch.zeros, torch.zeros_like, torch.Tensor.new_zeros)
_MOVES = (torch.Tensor.to, torch.Tensor.float, torch.Tensor.type_as, torch.Tensor.requires_grad_)


@dataclass(frozen=True)
class ExpandRecurrent:
    """Write out every LSTM and GRU whose state begins at zero; others stay opaque, with the reason for `check`."""

    config: Config
    name: ClassVar[str] = "expand_recurrent"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            kind = next((k for k in _KINDS if isinstance(rw.module(node), k)), None)
            if kind is None or is_changed(gm.get_submodule(str(node.target)), kind) or not settings_of(self.config, gm, node).quantize:
                continue
            try:
                with rw.before(node):
                    _written(node, rw)
            except CanNotWrite as error:
                mark_opaque(node, error.what, error.remedy)
        rw.sweep()
        return rw.changed


def _written(node: Node, rw: Rewriter) -> None:
    w = LayerWriter(rw, node)
    m: nn.LSTM | nn.GRU = w.module
    x = _input(node, m)
    readers = _readers(node, m)
    rank = len(shape_of(x))
    states: list[tuple[Node, Node | None]] = []
    for layer in range(m.num_layers):
        runs = [_Run(w, f"l{layer}{suffix}", x) for suffix in ("", "_reverse")[: 1 + m.bidirectional]]
        x = w.cat([run.outputs() for run in runs], rank - 1)
        states += [(run.hidden[-1], run.cell) for run in runs]
        if layer + 1 < m.num_layers:
            x = w.dropout(x, m.dropout)
    for user, wanted in readers:
        with rw.before(user):
            w.replace(user, x if wanted is None else _state(states, wanted))
    rw.sweep()


def _input(node: Node, m: nn.LSTM | nn.GRU) -> Node:
    """The sequence (N, T, F). Raises CanNotWrite for calls that have no exact meaning."""
    given = {**dict(zip(("input", "hx"), node.args)), **node.kwargs}
    x, start = given["input"], given.get("hx")
    if not m.batch_first:
        raise CanNotWrite("its batch is not the first axis", "use batch_first=True")
    if len(shape_of(x)) != 3:
        raise CanNotWrite("its input has no batch axis", "pass (batch, steps, features)")
    if getattr(m, "proj_size", 0):
        raise CanNotWrite("it projects its state", "use proj_size=0 and a linear layer behind it")
    parts = start if isinstance(start, tuple | list) else (start,)
    if any(p is not None and not (isinstance(p, Node) and _is_zero(p)) for p in parts):
        raise CanNotWrite("its first state comes with the data", "leave the state out: it begins at zero")
    assert isinstance(x, Node)
    return x


def _is_zero(node: Node) -> bool:
    while node.target in _MOVES and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target in _ZEROS


@dataclass(frozen=True)
class _Wanted:
    """One final state: part 0 is h, 1 is c; at: which layer and direction."""

    part: int
    at: int


def _readers(node: Node, m: nn.LSTM | nn.GRU) -> list[tuple[Node, _Wanted | None]]:
    """Who reads the outputs (None), and who reads which final state. Raises CanNotWrite for other uses."""
    count = m.num_layers * (1 + m.bidirectional)
    found: list[tuple[Node, _Wanted | None]] = []
    for user in node.users:
        part = user.args[1] if user.target is operator.getitem else None
        if part == 0:
            found.append((user, None))
        elif part == 1 and isinstance(m, nn.GRU):
            found += _state_readers(user, 0, count)
        elif part == 1:
            for state in user.users:
                if state.target is not operator.getitem or state.args[1] not in (0, 1):
                    raise CanNotWrite("its final state is used as a whole", "take it apart: y, (h, c) = lstm(x)")
                found += _state_readers(state, 1 if state.args[1] else 0, count)
        else:
            raise CanNotWrite("its result is used as a whole", "take it apart: y, state = layer(x)")
    return found


def _state_readers(state: Node, part: int, count: int) -> list[tuple[Node, _Wanted | None]]:
    found: list[tuple[Node, _Wanted | None]] = []
    for user in state.users:
        index = user.args[1] if user.target in (operator.getitem, torch.Tensor.__getitem__) else None
        index = index[0] if isinstance(index, tuple) and all(s == slice(None) for s in index[1:]) else index
        if user.target in (torch.squeeze, torch.Tensor.squeeze) and count == 1 and user.args[1:] == (0,):
            index = 0
        if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
            raise CanNotWrite("its final state is used with the batch on axis 1", "take one state, as h[-1], or the outputs y[:, -1]")
        found.append((user, _Wanted(part, index % count)))
    return found


def _state(states: list[tuple[Node, Node | None]], wanted: _Wanted) -> Node:
    made = states[wanted.at][wanted.part]
    assert made is not None
    return made


class _Run:
    """One layer in one direction over all steps. After it: `hidden` by step as it was computed, and the last `cell`."""

    def __init__(self, w: LayerWriter, name: str, x: Node) -> None:
        self.w, self.name, self.reverse = w, name, name.endswith("_reverse")
        m = w.module
        self.size: int = m.hidden_size
        weight, self.recurrent = self._parameter("weight_ih"), self._parameter("weight_hh")
        bias, other = (self._parameter(b) if m.bias else None for b in ("bias_ih", "bias_hh"))
        self.later: Node | None = None
        if bias is not None and other is not None:
            bias = self._joint(bias, other) if isinstance(m, nn.GRU) else w.of_parameters(operator.add, shape_of(bias), bias, other)
        assert weight is not None
        inputs = w.linear(x, weight, bias)
        step = self._gru if isinstance(m, nn.GRU) else self._lstm
        self.hidden: list[Node] = []
        self.cell: Node | None = None
        steps, gates = shape_of(x)[1], shape_of(inputs)[2]
        for t in reversed(range(steps)) if self.reverse else range(steps):
            step(w.reshape(w.cut(inputs, 1, t, t + 1), gates))

    def outputs(self) -> Node:
        """(N, T, H)."""
        rows = [self.w.reshape(h, 1, self.size) for h in (reversed(self.hidden) if self.reverse else self.hidden)]
        return self.w.cat(rows, 1)

    def _parameter(self, name: str) -> Node | None:
        return self.w.parameter(f"{name}_{self.name}")

    def _shared(self, node: Node, what: str) -> Node:
        return mark_format_group(node, f"{self.w.path}@{info(self.w.node).site}.{self.name}.{what}")

    def _gate(self, function: Callable[..., Any], x: Node, what: str) -> Node:
        """A table over a format that all steps share, and so are its results."""
        return self._shared(self.w.unary(function, x), f"{what}.table")

    def _part(self, x: Node, first: int, last: int) -> Node:
        return self.w.cut(x, 1, first * self.size, last * self.size)

    def _sum(self, u: Node, what: str, weight: Node | None, bias: Node | None = None) -> Node:
        """u + W' h, or what is left of it at the first step."""
        w = self.w
        if not self.hidden:
            return self._shared(w.add(u, 0.0), what)  # a value of its own: what moves values has their quantizer
        assert weight is not None
        return self._shared(w.add(u, w.linear(self.hidden[-1], weight, bias)), what)

    def _lstm(self, u: Node) -> None:
        w = self.w
        gates = self._sum(u, "gates", self.recurrent)
        opened = self._gate(torch.sigmoid, self._part(gates, 0, 2), "opened")
        new = self._gate(torch.tanh, self._part(gates, 2, 3), "new")
        out = self._gate(torch.sigmoid, self._part(gates, 3, 4), "out")
        cell = w.mul(self._part(opened, 0, 1), new)
        if self.cell is not None:
            cell = w.add(w.mul(self._part(opened, 1, 2), self.cell), cell)
        self.cell = self._shared(cell, "cell")
        self.hidden.append(self._shared(w.mul(out, self._gate(torch.tanh, self.cell, "squashed")), "hidden"))

    def _gru(self, u: Node) -> None:
        w, n = self.w, self.size
        weight = self.recurrent
        assert weight is not None
        opened = self._sum(self._part(u, 0, 2), "gates", w.rows(weight, 0, 2 * n))
        opened = self._gate(torch.sigmoid, opened, "opened")
        reset, kept = self._part(opened, 0, 1), self._part(opened, 1, 2)
        before = w.linear(self.hidden[-1], w.rows(weight, 2 * n, 3 * n), self.later) if self.hidden else self.later
        if before is not None:
            before = w.mul(reset, self._shared(before, "before") if self.hidden else before)
        new = w.add(self._part(u, 2, 3), 0.0 if before is None else before)
        new = self._gate(torch.tanh, self._shared(new, "sum"), "new")
        difference = w.sub(self.hidden[-1], new) if self.hidden else w.call(operator.neg, shape_of(new), new)
        self.hidden.append(self._shared(w.add(new, w.mul(kept, self._shared(difference, "difference"))), "hidden"))

    def _joint(self, bias: Node, other: Node) -> Node:
        """b + b' for the gates; b' of the new state goes through the reset gate."""
        w, n = self.w, self.size
        self.later = w.rows(other, 2 * n, 3 * n)
        gates = w.of_parameters(operator.add, (2 * n,), w.rows(bias, 0, 2 * n), w.rows(other, 0, 2 * n))
        return w.of_parameters(torch.cat, (3 * n,), (gates, w.rows(bias, 2 * n, 3 * n)), 0)
