"""alkaid's interpreter against ours, before any of its RTL is believed.

alkaid 0.8.2 computes a few graphs wrongly; what its interpreter computes is what its RTL does. So every circuit is run on
samples that reach the corners of its formats, and refused with the first node that differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.graph.analysis import sample_shape
from pquant_fx.graph.info import place
from pquant_fx.lower.integer import IntegerInterpreter
from pquant_fx.lower.rtl.adapter import alkaid_version
from pquant_fx.lower.rtl.circuit import Design, flattened

__all__ = ["probes", "require_trust", "vectors"]

Array = NDArray[np.float64]
_RANDOM, _CORNERS, _OUTSIDE = 600, 300, 100


def probes(circuit: Design, seed: int = 0) -> list[Array]:
    """Real inputs of the network, one array an input, samples first: codes drawn from all over each input's format, smallest and
    largest codes in every mixture, all zeros and single lsbs, ties of the format's grid, and numbers far outside of it.
    """
    rng = np.random.default_rng(seed)
    shapes = [sample_shape(n) or () for n in circuit.gm.graph.nodes if n.op == "placeholder"]
    sizes = [int(np.prod(shape)) for shape in shapes]
    low, high, lsb = _ranges(circuit, sum(sizes))
    span = np.rint((high - low) / lsb)
    codes = low + np.floor(rng.random((_RANDOM, low.size)) * (span + 1)) * lsb
    share = rng.random((_CORNERS, 1))
    corners = np.where(rng.random((_CORNERS, low.size)) < share, low, high)
    sparse = np.where(rng.random((_CORNERS, low.size)) < share**2, codes[:_CORNERS], 0.0)
    ties = codes[:_OUTSIDE] + lsb / 2
    outside = codes[:_OUTSIDE] * rng.choice([-3.0, 1.5, 300.0], size=(_OUTSIDE, 1))
    x = np.concatenate([[low, high, 0 * low, lsb, -lsb], codes, corners, sparse, ties, outside])
    x = np.clip(x, -(2.0**100), 2.0**100)
    ends = np.cumsum(sizes)
    return [x[:, end - size : end].reshape(-1, *shape) for end, size, shape in zip(ends, sizes, shapes)]


def _ranges(circuit: Design, count: int) -> tuple[Array, Array, Array]:
    """Smallest and largest value and finest lsb that any quantizer has for each number of the inputs."""
    low, high, f = np.zeros(count + 1), np.zeros(count + 1), np.zeros(count + 1)
    for port, index in zip(circuit.inputs, circuit.sources):
        k, i, fraction = (a.ravel() for a in port.kif)
        at = index.ravel()[port.used]
        k, i, fraction = k[port.used], i[port.used], fraction[port.used]
        np.minimum.at(low, at, -k * 2.0**i)
        np.maximum.at(high, at, 2.0**i - 2.0**-fraction)
        np.maximum.at(f, at, fraction)
    return low[1:], high[1:], 2.0 ** -f[1:]


def vectors(circuit: Design, inputs: Sequence[Array]) -> tuple[Array, Array]:
    """(codes of the input ports, outputs) as real numbers, samples first, both by our own interpreter."""
    values = IntegerInterpreter(circuit.gm, circuit.formats).run(*inputs, trace=True)[1]
    return flattened(circuit.inputs, values), _side_by_side([values[p.name] for p in circuit.outputs])


def require_trust(circuit: Design, inputs: Sequence[Array] | None = None) -> int:
    """Compare on probes, and on real inputs when there are some. Returns how many samples agreed.

    Raises LoweringError (PQ511) with the first node, in order of computation, at which alkaid computes another value.
    """
    count = 0
    for x in [probes(circuit), *([list(inputs)] if inputs is not None else [])]:
        interpreter = IntegerInterpreter(circuit.gm, circuit.formats)
        values: dict[str, Array] = interpreter.run(*x, trace=True)[1]
        entered = flattened(circuit.inputs, values)
        expected = _side_by_side([values[p.name] for p in circuit.outputs])
        if not np.array_equal(circuit.evaluate(entered), expected):
            raise LoweringError(_difference(circuit, entered, values))
        count += len(entered)
    return count


def _difference(circuit: Design, entered: Array, values: dict[str, Array]) -> Problem:
    remedy = "give the quantizers around it other formats or modes, or use to_hls4ml; report it to alkaid"
    for node, got in circuit.node_values(entered):
        if node.name not in values:
            continue
        expected = values[node.name].reshape(len(entered), -1)
        if not np.array_equal(got, expected):
            return Problem("PQ511", _what(node, got, expected), remedy, place(node))
    node = next(n for n in circuit.gm.graph.nodes if n.name == circuit.outputs[0].name)
    return Problem("PQ511", f"alkaid {alkaid_version()} computes other outputs, though every node by itself is right", remedy, place(node))


def _what(node: Node, got: Array, expected: Array) -> str:
    wrong = (got != expected).any(axis=1)
    first = int(np.argmax(wrong))
    at = int(np.argmax(got[first] != expected[first]))
    example = f"{got[first, at]:g} instead of {expected[first, at]:g}"
    return f"alkaid {alkaid_version()} computes '{node.name}' wrongly: {int(wrong.sum())} of {len(wrong)} samples differ, one is {example}"


def _side_by_side(arrays: Sequence[Array]) -> Array:
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
