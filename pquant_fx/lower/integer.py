"""The exact interpreter: a frozen graph on integer codes. It is the reference that every other engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pquant_fx.errors import InputError, Problem
from pquant_fx.graph.analysis import FormatMap, analyse, sample_shape
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of, op_of
from pquant_fx.graph.info import place
from pquant_fx.graph.interval_codes import dyadic, quantize_codes, quantize_real
from pquant_fx.graph.interval_quantizer import formats_of
from pquant_fx.graph.tables import Tabulated, lookup
from pquant_fx.graph.values import output_of
from pquant_fx.lower.exact_forward import FLOAT64_BITS
from pquant_fx.lower.integer_ops import OPERATORS, SUMS_OF_PRODUCTS, Codes, from_real, real

__all__ = ["Codes", "IntegerInterpreter", "real"]

_BLOCK = 1 << 23
"""Elements of the widest value held at once: samples are run in blocks of that size."""

Value = Codes | NDArray[np.float64]


class IntegerInterpreter:
    """Runs a frozen `gm` on real-valued inputs, batch first; every value is an int64 code array at one lsb.

    Raises LoweringError with every node that has no exact meaning (PQ201, PQ202, PQ303, ...), all at once.
    """

    def __init__(self, gm: GraphModule, formats: FormatMap | None = None) -> None:
        self.gm = gm
        self.formats = analyse(gm) if formats is None else formats
        self.formats.require()
        self._inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self._output = output_of(gm)
        self._constants: dict[Node, Codes] = {}
        self._steps: list[Node] = []
        live = live_nodes(gm)
        for node in gm.graph.nodes:
            if node in self.formats.constants:
                if self.formats.intervals.get(node) is not None:
                    self._constants[node] = self._constant(node)
            elif node.op not in ("placeholder", "output") and node in live:
                self._steps.append(node)
        self._last = {used: node for node in gm.graph.nodes for used in node.all_input_nodes}
        widest = max((found.low.size for found in self.formats.intervals.values() if found is not None), default=1)
        self._samples = max(1, _BLOCK // max(1, widest))

    def __call__(self, *inputs: ArrayLike) -> Any:
        return self.run(*inputs)

    @property
    def constants(self) -> Mapping[Node, Codes]:
        """The parameter values that the graph computes with."""
        return self._constants

    def run(self, *inputs: ArrayLike, trace: bool = False) -> Any:
        """The outputs in the structure of `forward`, each tensor a `Codes(codes, f)`; numbers and None stay as they are.

        trace: return (outputs, values) with values the float64 array of every data node by name.
        Raises InputError: PQ409 for a wrong number, type or shape of inputs, PQ305 for NaN or infinity in them.
        """
        arrays = self._checked(inputs)
        count = arrays[0].shape[0] if arrays else 1
        values: dict[str, list[NDArray[np.float64]]] = {}
        parts = []
        for start in range(0, max(count, 1), self._samples):
            block = [a[start : start + self._samples] for a in arrays]
            parts.append(self._block(block, values if trace else None))
        joined = {node: Codes(np.concatenate([part[node].codes for part in parts]), first.f) for node, first in parts[0].items()}
        outputs = _structured(self._output.args[0], {**self._constants, **joined})
        if not trace:
            return outputs
        return outputs, {name: np.concatenate(pieces) for name, pieces in values.items()}

    # ---- one block of samples
    def _block(self, inputs: list[NDArray[np.float64]], trace: dict[str, list[NDArray[np.float64]]] | None) -> dict[Node, Codes]:
        """The data values that the outputs return."""
        state: dict[Node, Value] = dict(self._constants)
        state.update(zip(self._inputs, inputs))
        for node in self._steps:
            made = state[node] = self._step(node, state)
            if trace is not None:
                trace.setdefault(node.name, []).append(real(*made) if isinstance(made, Codes) else made)
            for used in node.all_input_nodes:
                if self._last[used] is node:
                    state.pop(used, None)
        returned = [n for n in self._output.all_input_nodes if n not in self._constants]
        return {n: v for n in returned if isinstance(v := state[n], Codes)}

    def _step(self, node: Node, state: dict[Node, Value]) -> Value:
        module = module_of(self.gm, node)
        if isinstance(module, Quantizer):
            return _quantized(module, state[_first(node)])
        if isinstance(module, IDENTITIES):
            return state[_first(node)]
        if (op := op_of(node)) is not None and op.kind == "table" and node.target is not lookup:
            leaf = module if isinstance(module, Tabulated) else Tabulated(op.name, node.args[1:], node.kwargs)
            return _tabulated(leaf, state[_first(node)])
        args: Any = map_arg((*node.args, *node.kwargs.values()), cast(Any, state.__getitem__))
        if any(not isinstance(state[n], Codes) for n in node.all_input_nodes):
            return _moved(node, state)
        if node.target in SUMS_OF_PRODUCTS:
            sums = self.formats.accumulators[node]
            return SUMS_OF_PRODUCTS[node.target](sums.bits <= FLOAT64_BITS, *args)
        return OPERATORS[node.target](*args)  # type: ignore[index]

    def _constant(self, node: Node) -> Codes:
        """A parameter value as codes; a quantizer on it is computed here, not taken from torch."""
        module = module_of(self.gm, node)
        if not isinstance(module, Quantizer):
            return from_real(self.formats.constants[node].cpu().double().numpy())
        tensor = self.formats.constants[_first(node)]
        given = tensor.cpu().double().numpy()
        formats = formats_of(module, given.shape, data=False, value=tensor)
        own = quantize_real(given, formats, module.rounding, module.overflow)
        codes, f, _ = dyadic(np.ldexp(own.astype(np.float64), -formats.f))
        return Codes(codes, f)

    # ---- inputs
    def _checked(self, inputs: tuple[ArrayLike, ...]) -> list[NDArray[np.float64]]:
        if len(inputs) != len(self._inputs):
            names = ", ".join(n.name for n in self._inputs)
            raise InputError(Problem("PQ409", f"{len(inputs)} inputs were given, the network has {len(self._inputs)}", f"give {names}"))
        problems: list[Problem] = []
        arrays: list[NDArray[np.float64]] = []
        for node, given in zip(self._inputs, inputs):
            x = np.asarray(given)
            shape = sample_shape(node)
            if x.dtype.kind not in "fiu" or x.ndim == 0 or (shape is not None and x.shape[1:] != shape):
                what = f"the input '{node.name}' has shape {tuple(x.shape)} and type {x.dtype}"
                wanted = ", ".join(("samples", *map(str, shape))) if shape is not None else "samples, ..."
                problems.append(Problem("PQ409", what, f"give real numbers of shape ({wanted})", place(node)))
            elif arrays and x.shape[0] != arrays[0].shape[0]:
                what = f"the input '{node.name}' has {x.shape[0]} samples, another has {arrays[0].shape[0]}"
                problems.append(Problem("PQ409", what, "give every input the same number of samples", place(node)))
            elif not np.isfinite(x).all():
                first = int(np.argwhere(~np.isfinite(x))[0][0])
                what = f"the input '{node.name}' holds NaN or infinity (first in sample {first})"
                problems.append(Problem("PQ305", what, "clean the data: fixed point has no such value", place(node)))
            else:
                arrays.append(x.astype(np.float64))
        if problems:
            raise InputError(problems)
        return arrays


def _quantized(quantizer: Quantizer, x: Value) -> Codes:
    shape = x.codes.shape[1:] if isinstance(x, Codes) else x.shape[1:]
    formats = formats_of(quantizer, shape, data=True).compact()
    if isinstance(x, Codes):
        own = quantize_codes(x.codes, x.f, formats, quantizer.rounding, quantizer.overflow)
    else:
        own = quantize_real(x, formats, quantizer.rounding, quantizer.overflow)
    return Codes(own << formats.spread(), formats.lsb)


def _tabulated(leaf: Tabulated, x: Value) -> NDArray[np.float64]:
    """The real results of a table that is not made yet, at most float32's largest number."""
    values = real(*x) if isinstance(x, Codes) else x
    made: NDArray[np.float64] = leaf.precisely(torch.from_numpy(values)).clamp(-(2.0**127), 2.0**127).double().numpy()
    return made


def _first(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _moved(node: Node, state: dict[Node, Value]) -> NDArray[np.float64]:
    """Real numbers that are only moved about before their quantizer: every grid operator takes any kind of array."""

    def unscaled(n: Node) -> Any:
        return Codes(state[n], 0)  # type: ignore[arg-type]

    args: Any = map_arg((*node.args, *node.kwargs.values()), cast(Any, unscaled))
    return OPERATORS[node.target](*args).codes  # type: ignore[index, return-value]


def _structured(value: Any, values: dict[Node, Codes]) -> Any:
    """The output node's argument with every node replaced by its value."""
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, tuple):
        parts = [_structured(v, values) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_structured(v, values) for v in value]
    if isinstance(value, dict):
        return {key: _structured(v, values) for key, v in value.items()}
    return value
