"""Frozen graphs made by hand, for tests of what reads them: parameters `get_attr -> FixedQuantizer`, data through quantizers."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from pquant_fx.graph.info import NodeInfo, info, set_info
from pquant_fx.quantize.quantizers import FixedQuantizer


class FrozenNet:
    """Writes a graph node by node; `done` returns the GraphModule with shapes recorded for a batch of 2."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.root = nn.Module()
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def input(self, name: str, *sample: int) -> Node:
        node = self.graph.placeholder(name)
        self.shapes[node] = (2, *sample)
        return node

    def quantize(self, x: Node, k: Any, i: Any, f: Any, rounding: str = "RND", overflow: str = "SAT", name: str | None = None) -> Node:
        path = f"pq.{name or x.name}.quantizer"
        self._add(path, FixedQuantizer(_bits(k), _bits(i), _bits(f), rounding, overflow))
        return self.graph.call_module(path, (x,))

    def parameter(
        self, name: str, value: Tensor, k: Any = None, i: Any = 0, f: Any = 0, rounding: str = "RND", overflow: str = "SAT"
    ) -> Node:
        """A parameter, quantized onto its grid beforehand as freezing does; without a format when k is None."""
        quantizer = None if k is None else FixedQuantizer(_bits(k), _bits(i), _bits(f), rounding, overflow)
        held = value if quantizer is None else quantizer(value.double())
        held = held.float() if torch.equal(held.float().double(), held.double()) else held
        owner, _, last = name.rpartition(".")
        self._add(owner, nn.Module()) if owner and not _has(self.root, owner) else None
        (self.root.get_submodule(owner) if owner else self.root).register_buffer(last, held.detach())
        node = self.graph.get_attr(name)
        if quantizer is None:
            return node
        self._add(f"pq.{name}_quantizer", quantizer)
        return self.graph.call_module(f"pq.{name}_quantizer", (node,))

    def call(self, function: Callable[..., Any], *args: Any, path: str = "") -> Node:
        node = self.graph.call_function(function, args)
        set_info(node, NodeInfo(path=path, line=f"net.py:{len(self.graph.nodes)}"))
        return node

    def done(self, result: Any) -> GraphModule:
        self.graph.output(result)
        gm = GraphModule(self.root, self.graph).eval()
        twin = copy.deepcopy(gm).double()
        values: dict[Node, Any] = {}
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                values[node] = torch.zeros(self.shapes[next(n for n in self.shapes if n.name == node.name)], dtype=torch.float64)
            elif node.op != "output":
                values[node] = _run(twin, node, values)
            if isinstance(values.get(node), Tensor):
                set_info(node, info(node).with_shape(tuple(values[node].shape)))
        return gm

    def _add(self, path: str, module: nn.Module) -> None:
        owner = self.root
        *parents, last = path.split(".")
        for part in parents:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.add_module(last, module)


def double_reference(gm: GraphModule, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[np.float64]]:
    """The outputs of the graph computed by torch in float64, where every value of these tests is exact."""
    twin = copy.deepcopy(gm).double().eval()
    with torch.no_grad():
        return [v.numpy() for v in tree_leaves(twin(*(torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in inputs))) if v is not None]


def stress_values(shape: tuple[int, ...], f: int, high: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Off-grid, on-grid, tie, next-to-tie and saturating values of a format with fraction bits f that ends at `high`."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    ties = (rng.integers(-(2**12), 2**12, count) + 0.5) * 2.0**-f
    ties = (ties % high) * rng.choice([-1, 1], count)
    near = np.nextafter(ties.astype(np.float32), np.float32(np.inf) * rng.choice([-1, 1], count).astype(np.float32))
    half = np.array([0.5, -0.5, 1.5, -1.5, 2.5, -2.5], dtype=np.float32) * np.float32(2.0**-f)
    edges = np.concatenate([np.nextafter(half, np.float32(0)), np.nextafter(half, np.float32(9)), half, [0.0, high, -high, 1e6, -1e6]])
    kinds = np.stack([rng.normal(size=count) * high, ties, near, rng.choice(edges, count), np.round(ties * 2.0**f) * 2.0**-f])
    return kinds[rng.integers(0, len(kinds), count), np.arange(count)].astype(np.float32).reshape(shape)


Kind = tuple[int, int, int, str, str]


def published_vectors() -> dict[Kind, dict[np.float32, float]]:
    """The oracle's vectors by (k, i, f, rounding, overflow): x -> q(x), for every x that float32 holds."""
    found: dict[Kind, dict[np.float32, float]] = defaultdict(dict)
    text = (Path(__file__).parent / "data" / "fixed_point_vectors.json").read_text()
    for v in json.loads(text)["vectors"]:
        x = Fraction(v["x"])
        if Fraction(float(np.float32(float(x)))) == x:
            found[v["k"], v["i"], v["f"], v["round"], v["overflow"]][np.float32(float(x))] = float(Fraction(v["value"]))
    return dict(found)


def vector_net(vectors: dict[Kind, dict[np.float32, float]], first: tuple[int, int, int] | None = None) -> GraphModule:
    """One input, one output for each kind of quantizer; `first`: a truncating format in front, so that inputs are on a grid."""
    net = FrozenNet()
    x: Node = net.input("x", 1)
    if first is not None:
        x = net.quantize(x, *first, "TRN", "SAT", name="first")
    return net.done({f"y{n}": net.quantize(x, *kind, name=f"q{n}") for n, kind in enumerate(vectors)})


def wrong_vectors(vectors: dict[Kind, dict[np.float32, float]], run: Callable[[list[Any]], list[Any]]) -> list[tuple[Kind, float]]:
    """Every (kind, x) of the vectors for which `run` on all their inputs gives another value than the oracle."""
    xs = np.array(sorted({x for cases in vectors.values() for x in cases}), dtype=np.float32)
    at = {x: n for n, x in enumerate(xs)}
    outputs = run([xs[:, None]])
    return [(kind, x) for (kind, cases), y in zip(vectors.items(), outputs) for x, q in cases.items() if y[at[x], 0] != q]


def _bits(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32)


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _run(gm: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    args = torch.fx.node.map_arg(node.args, lambda n: values[n])
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(gm.get_submodule(owner), name)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args)
    assert callable(node.target)
    return node.target(*args)
