"""EBOPs by brute force: a loop over every multiplication, addition and comparison of one sample, in plain Python.

Where elements go is asked of torch itself, by moving numbered elements; bits come from quantizers, codes and intervals.
"""

from __future__ import annotations

import itertools
import math
import operator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph import means
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of
from pquant_fx.graph.moves import upsample


class Element(NamedTuple):
    """What one element of a value stores; declared: by a quantizer, not found from an interval."""

    k: int
    i: int
    f: int
    declared: bool = True

    @property
    def bits(self) -> int:
        stored = self.i + self.f >= 0 and self.k + self.i + self.f > 0
        return self.k + self.i + self.f if stored else 0


ZERO = Element(0, 0, 0)
MOVES = (torch.reshape, torch.permute, torch.cat, operator.getitem, F.pad, upsample)
POOLS = {F.max_pool1d: 1, F.max_pool2d: 2, F.avg_pool1d: 1, F.avg_pool2d: 2}


def enclosed(value: float) -> int:
    """Bits from the first to the last 1 of a code."""
    return len(bin(abs(Fraction(value).numerator))[2:].strip("0")) if value else 0


def union(a: Element, b: Element) -> Element:
    if not a.bits or not b.bits:
        return a if a.bits else b
    return Element(max(a.k, b.k), max(a.i, b.i), max(a.f, b.f), a.declared and b.declared)


class BruteForce:
    """`total` EBOPs of a graph of quantizers, constants and operators, and `costs` by node name.

    frozen: look through quantizers inside that change nothing, as freezing removes them.
    """

    def __init__(self, gm: GraphModule, frozen: bool = True) -> None:
        self.gm, self.formats, self.frozen = gm, analyse(gm), frozen
        self.values: dict[Node, np.ndarray] = {}  # arrays of Element, batch axis 1
        self.costs: dict[str, float] = {}
        live = live_nodes(gm)
        for node in (n for n in gm.graph.nodes if n in live):
            if node.op not in ("placeholder", "output") and not is_parameter_value(node):
                self.values[node] = self._value(node)
                if node.op == "call_function" and (cost := self._cost(node)) is not None:
                    self.costs[node.name] = cost
        self.total = sum(self.costs.values())

    # ---- bits of values
    def bits(self, value: Any) -> np.ndarray:
        """Bits of each element: of a data value, of a parameter's codes, of a number."""
        if value in self.values:
            return _each(lambda e: e.bits, self.values[value])
        real = self.formats.constants[value].double().numpy() if isinstance(value, Node) else np.asarray(float(value))
        return _each(lambda v: enclosed(float(v)), real)

    def _value(self, node: Node) -> np.ndarray:
        quantizer = module_of(self.gm, node)
        if isinstance(quantizer, Quantizer):
            source = node.args[0]
            inside = source in self.values and all(user.op != "output" for user in node.users)
            if self.frozen and inside and self.formats.facts[node].is_identity:
                return self.values[source]
            shape = (1, *self.formats[node].shape)
            k, i, f = (np.broadcast_to(t.numpy().astype(int), shape) for t in quantizer.kif())
            return _elements(lambda at: Element(int(k[at]), int(i[at]), int(f[at])), shape)
        if node.target in MOVES:
            return self._moved(node)
        if node.target in (F.max_pool1d, F.max_pool2d):
            return self._largest(node)
        source = self.values[node.args[0]] if node.target is F.relu else None
        if source is not None and all(e.declared for e in source.flat):
            return _elements(lambda at: source[at]._replace(k=0), source.shape)
        found = self.formats[node].formats()
        return _elements(lambda at: Element(*(int(part[at[1:]]) for part in found), False), (1, *self.formats[node].shape))

    def _moved(self, node: Node) -> np.ndarray:
        """The operator on numbered elements says where each comes from; 0 is what it fills in."""
        given = node.args[0] if node.target is torch.cat else (node.args[0],)
        pools = [self.values[v] for v in given]
        starts = np.cumsum([1, *(p.size for p in pools)])
        numbered = [torch.arange(s, s + p.size).double().reshape(p.shape) for s, p in zip(starts, pools)]
        moved = node.target(tuple(numbered), *node.args[1:]) if node.target is torch.cat else node.target(numbered[0], *node.args[1:])
        flat = [ZERO, *itertools.chain(*(p.flat for p in pools))]
        return _elements(lambda at: flat[int(moved.numpy()[at])], tuple(moved.shape))

    def _largest(self, node: Node) -> np.ndarray:
        x, (kernel, stride, padding, dilation, _) = self.values[node.args[0]], node.args[1:]
        out = _elements(lambda at: ZERO, (1, *self.formats[node].shape))
        for at in np.ndindex(out.shape):
            for tap in np.ndindex(*kernel):
                where = tuple(p * s - q + t * d for p, s, q, t, d in zip(at[2:], stride, padding, tap, dilation))
                if all(0 <= w < size for w, size in zip(where, x.shape[2:])):
                    out[at] = union(out[at], x[(*at[:2], *where)])
        return out

    # ---- costs
    def _cost(self, node: Node) -> float | None:
        args, out = node.args, (1, *self.formats[node].shape)
        match node.target:
            case F.linear:
                return self._linear(*args)
            case F.conv1d | F.conv2d:
                return self._conv(node, *args)
            case F.conv_transpose1d | F.conv_transpose2d:
                return self._transposed(node, *args)
            case torch.matmul:
                a, b = self.bits(args[0]), self.bits(args[1])
                return float(sum(a[(*at, n, j)] * b[_last(b, at, j, m)] for *at, n, j in np.ndindex(a.shape) for m in range(b.shape[-1])))
            case operator.add | operator.sub | operator.mul | torch.maximum | torch.minimum:
                return self._elementwise(node, out)
            case torch.sum | torch.mean:
                return 0.65 * self._sum(*args[:2])
            case means.scaled_sum | means.scaled_pool:
                adds = 0.65 * self._sum(*args[:2]) if node.target is means.scaled_sum else float(self.bits(args[0]).sum())
                return adds + self._scaled(node, float(args[-1]))
            case F.avg_pool1d | F.avg_pool2d | F.max_pool1d | F.max_pool2d:
                return float(self.bits(args[0]).sum())
        return None

    def _linear(self, x: Node, w: Node, b: Node | None) -> float:
        bx, bw = self.bits(x), self.bits(w)
        cost = 0
        for row in np.ndindex(bx.shape[:-1]):
            for o in range(bw.shape[0]):
                cost += sum(bx[(*row, j)] * bw[o, j] for j in range(bw.shape[1]))
                cost += 0 if b is None else self.bits(b)[o]
        return float(cost)

    def _conv(self, node: Node, x: Node, w: Node, b: Node | None, stride: Any, padding: Any, dilation: Any, groups: int) -> float:
        bx, bw, bias = self.bits(x), self.bits(w), None if b is None else self.bits(b)
        outputs, channels = bw.shape[:2]
        cost = 0
        for o, *place in np.ndindex(self.formats[node].shape):
            cost += 0 if bias is None else bias[o]
            first = o // (outputs // groups) * channels
            for c, *tap in np.ndindex(bw.shape[1:]):
                where = tuple(p * s - q + t * d for p, s, q, t, d in zip(place, stride, padding, tap, dilation))
                if all(0 <= at < size for at, size in zip(where, bx.shape[2:])):
                    cost += bx[(0, first + c, *where)] * bw[(o, c, *tap)]
        return float(cost)

    def _transposed(self, node: Node, x: Node, w: Node, b: Any, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any) -> float:
        bx, bw, out = self.bits(x), self.bits(w), self.formats[node].shape
        cost = 0 if b is None else self.bits(b).sum() * math.prod(out[1:])
        for c, *place in np.ndindex(bx.shape[1:]):
            for o, *tap in np.ndindex(bw.shape[1:]):
                where = [p * s - q + t * d for p, s, q, t, d in zip(place, stride, padding, tap, dilation)]
                if all(0 <= at < size for at, size in zip(where, out[1:])):
                    cost += bx[(0, c, *place)] * bw[(c, o, *tap)]
        return float(cost)

    def _elementwise(self, node: Node, out: tuple[int, ...]) -> float | None:
        a, b = (np.broadcast_to(self.bits(v), out) for v in node.args)
        constants = [v not in self.values for v in node.args]
        if node.target is operator.mul:
            shift = [isinstance(v, int | float) and abs(math.frexp(v)[0]) == 0.5 for v in node.args]
            return None if any(shift) else float(sum(p * q for p, q in zip(a.flat, b.flat)))
        if node.target is operator.add and any(constants):
            return float((a if constants[0] else b).sum())
        if node.target is operator.sub and constants[1]:
            return float(b.sum())
        weight = 0.65 if node.target is operator.add else 1.0
        return weight * float(sum(p + q - min(p, q) for p, q in zip(a.flat, b.flat)))

    def _scaled(self, node: Node, factor: float) -> float:
        """A product of every sum, whose format has ceil(log2 P) bits more than its widest element, with the constant."""
        x, out = self.values[node.args[0]], self.formats[node].shape
        axes = tuple(node.args[1]) if node.target is means.scaled_sum else ()
        terms = math.prod(x.shape[a] for a in axes) if axes else math.prod(node.args[1])
        cost = 0
        for place in np.ndindex(out):
            if axes:
                kept = iter(p for p, size in zip(place, out) if len(out) < x.ndim - 1 or size > 1)
                at = tuple(slice(None) if a in axes or a == 0 else next(kept) for a in range(x.ndim))
            else:
                at = (slice(None), place[0])
            widest = ZERO
            for element in np.asarray(x[at]).flat:
                widest = union(widest, element)
            cost += (widest.k + widest.i + widest.f + math.ceil(math.log2(terms))) * enclosed(factor)
        return float(cost)

    def _sum(self, x: Node, axes: tuple[int, ...]) -> float:
        bits = self.bits(x)
        groups: dict[tuple[int, ...], list[int]] = {}
        for at in np.ndindex(bits.shape):
            groups.setdefault(tuple(p for axis, p in enumerate(at) if axis not in axes), []).append(int(bits[at]))
        return float(sum(sum(group) - min(group) for group in groups.values()))


def _each(function: Any, array: np.ndarray) -> np.ndarray:
    return np.array([function(v) for v in array.flat], dtype=int).reshape(array.shape)


def _elements(at: Any, shape: tuple[int, ...]) -> np.ndarray:
    made = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        made[index] = at(index)
    return made


def _last(b: np.ndarray, at: list[int], j: int, m: int) -> tuple[int, ...]:
    """The index of b that a batched product pairs with row `at` of a."""
    return (*at, j, m) if b.ndim == len(at) + 2 else (j, m)
