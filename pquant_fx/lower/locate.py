"""Where an engine leaves torch: the nodes, in order of computation, whose values differ, and the worst input of the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pquant_fx.graph.info import info
from pquant_fx.lower.engine_values import Graphed, NodeValues, Run
from pquant_fx.lower.stress import KINDS, input_formats, varied

__all__ = ["NodeDifference", "differing_nodes", "worst_input"]

Array = npt.NDArray[np.float64]
_POPULATION = 32
_ROUNDS = 12


@dataclass(frozen=True)
class NodeDifference:
    """A node at which an engine leaves torch: by how many lsb at most, on which share of the samples.

    lsbs are the node's own; searched: the largest difference that a search over inputs found; worst: that input, one float64
    array an input, without batch axis.
    """

    engine: str
    node: str
    module: str
    line: str | None
    max_ulp: float
    share: float
    searched: float | None = None
    worst: tuple[Array, ...] | None = None


class _Recorder(Interpreter):
    """Runs a graph in torch and keeps every data value by node name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Array] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.double().numpy(force=True)
        return value


def differing_nodes(frozen: Graphed, inputs: list[Tensor], values: NodeValues, engine: str) -> list[NodeDifference]:
    """Every node whose value in torch is another than in `values` (an engine's, by node name), in order of computation."""
    expected = _torch_values(frozen.graph_module, inputs)
    found = []
    for node in frozen.graph_module.graph.nodes:
        if node.name not in values or node.name not in expected:
            continue
        ulp = _ulp(frozen, node, values[node.name], expected[node.name])
        if ulp.any():
            record = info(node)
            found.append(NodeDifference(engine, node.name, record.label, record.line, float(ulp.max()), float((ulp > 0).mean())))
    return found


def worst_input(frozen: Graphed, inputs: Sequence[Tensor], run: Run, found: NodeDifference, seconds: float = 10.0) -> NodeDifference:
    """Search the input whose value at the node differs most: `found` with `searched` and `worst`.

    An evolution of samples: the best of the given ones are crossed, moved by single lsbs, and set to extremes and ties, until
    the rounds or the seconds are spent. It never finds less than the given samples hold.
    """
    gm, node = frozen.graph_module, next(n for n in frozen.graph_module.graph.nodes if n.name == found.node)
    formats, rng, stop = input_formats(gm), np.random.default_rng(0), monotonic() + seconds
    pool = [x.double().numpy(force=True) for x in inputs]
    best: tuple[float, tuple[Array, ...]] | None = None
    for _ in range(_ROUNDS):
        given = [torch.from_numpy(x).float() for x in pool]
        ulp = _ulp(frozen, node, run(given)[found.node], _torch_values(gm, given)[found.node])
        order = np.argsort(-ulp, kind="stable")[:_POPULATION]
        if best is None or ulp[order[0]] > best[0]:
            best = float(ulp[order[0]]), tuple(x[order[0]] for x in pool)
        if monotonic() > stop:
            break
        pool = [_offspring(x[order], bits, rng) for x, bits in zip(pool, formats)]
    assert best is not None
    return replace(found, searched=max(best[0], found.max_ulp), worst=best[1])


def _offspring(parents: Array, bits: tuple[int, int, int] | None, rng: np.random.Generator) -> Array:
    """The parents, each crossed with another, moved by lsbs in some places, and as every kind of stress sample; bits None: crossed."""
    others = parents[rng.integers(0, len(parents), len(parents))]
    crossed = np.where(rng.random(parents.shape) < 0.5, parents, others)
    if bits is None:
        return np.concatenate([parents, crossed, others, parents])
    lsb = 2.0 ** -bits[2]
    moved = parents + np.where(rng.random(parents.shape) < 0.2, rng.integers(-3, 4, parents.shape) * lsb, 0.0)
    edged = np.where(rng.random(parents.shape) < 0.3, np.stack([varied(p, bits, n % KINDS, rng) for n, p in enumerate(parents)]), parents)
    return np.asarray(np.concatenate([parents, crossed, moved, edged]).astype(np.float32).astype(np.float64))


def _torch_values(gm: GraphModule, inputs: Sequence[Tensor]) -> dict[str, Array]:
    dtype = next((b.dtype for b in gm.buffers() if b.is_floating_point()), torch.float32)
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*(x.to(dtype) for x in inputs))
    return recorder.values


def _ulp(frozen: Graphed, node: Node, got: Array, expected: Array) -> Array:
    """The largest difference of each sample, in lsbs of the node; infinite where a shape or a number is wrong."""
    if got.shape != expected.shape:
        return np.full(len(expected), np.inf)
    interval = frozen.formats.intervals.get(node)
    apart = np.nan_to_num(np.abs(got - expected), nan=np.inf) * 2.0 ** (interval.f if interval is not None else 0)
    return np.asarray(apart.reshape(len(apart), -1).max(axis=1))
