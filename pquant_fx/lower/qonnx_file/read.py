"""QONNX file -> frozen graph: standard operators become operators of the dialect, `Quant` nodes quantizers and formats.

The meaning of a file is arithmetic on real numbers (Pappalardo et al. 2022). What integers times powers of two can not
express is refused with the name of its node, all of it at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from pquant_fx.errors import LoweringError, Place, PQuantError, Problem
from pquant_fx.lower.extras import require
from pquant_fx.lower.hls4ml.read import Node, domain_of, fold, load, ordered
from pquant_fx.lower.qonnx_file.draft import Constant, Draft
from pquant_fx.lower.qonnx_file.operators import MOVES, READERS
from pquant_fx.lower.qonnx_file.quantizers import quantized_constant

if TYPE_CHECKING:
    import onnx

__all__ = ["read_graph"]

_QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant", "FixedPoint")


def read_graph(model: onnx.ModelProto | str | os.PathLike[str]) -> GraphModule:
    """The frozen graph of a file or model: parameters `get_attr -> FixedQuantizer`, shapes recorded, `forward` returning a tensor for
    one output, a tuple for outputs called output_0, output_1, ..., else a dict by name.

    Raises LoweringError with all problems at once: PQ508 for a file that is broken or cyclic, PQ201 for operators that the graph
    language does not have, PQ202 for options and scales, PQ207 for modes, PQ305 for NaN; ExtraMissingError (PQ503) without onnx.
    """
    require("onnx")
    graph = load(model).graph
    label = "model" if not isinstance(model, str | os.PathLike) else Path(model).name
    held = _initializers(graph)
    read = Counter(name for n in graph.node for name in n.input) + Counter(o.name for o in graph.output)
    inputs = [i for i in graph.input if i.name not in held]
    draft = Draft(label, _batch(inputs), read)
    draft.constants.update(held)
    problems = _inputs(draft, inputs)
    shapes, constants = _Shapes(draft), _Values(draft)
    nodes = [Node(n, n.name or n.output[0], shapes, constants) for n in ordered(graph, {*held, *(i.name for i in inputs)})]
    by_input = {n.inputs[0]: n for n in nodes if n.inputs}
    place = {id(n): at for at, n in enumerate(graph.node)}
    for node in nodes:
        draft.at(node.name, place.get(id(node.proto), 0))
        try:
            _read(draft, node, by_input)
        except PQuantError as error:
            problems += [p if p.place.node else replace(p, place=Place(node=node.name)) for p in error.problems]
        except Exception as error:  # operands of a kind that no operator has: whatever a damaged file makes its reader raise
            what = f"{node.proto.op_type}: {type(error).__name__}: {error}"
            problems.append(Problem("PQ508", what, "look at this node's operands and attributes, export again", Place(node=node.name)))
    problems += [
        Problem("PQ202", f"output '{o.name}' is a constant", "leave it out of the file's outputs", Place(node=o.name))
        for o in graph.output
        if o.name in draft.constants
    ]
    if problems:
        raise LoweringError(list(dict.fromkeys(problems)))
    return draft.done(_result(draft, [o.name for o in graph.output]))


def _initializers(graph: onnx.GraphProto) -> dict[str, Constant]:
    """The file's tensors by name. Raises LoweringError (PQ508) with every one that can not be read, and for names that are no text."""
    from onnx import numpy_helper

    named = [*graph.initializer, *graph.input, *graph.output, *graph.node]
    texts = [*(n.name for n in named), *(t for n in graph.node for t in (*n.input, *n.output, n.op_type, n.domain))]
    if any(not isinstance(text, str) for text in texts):
        raise LoweringError(Problem("PQ508", "a name in the file is no text", "the file is damaged: export it again"))
    held: dict[str, Constant] = {}
    problems = []
    for tensor in graph.initializer:
        try:
            held[tensor.name] = Constant(numpy_helper.to_array(tensor), tensor.name)
        except Exception as error:  # sizes that do not fit, element types that nobody knows
            what = f"the tensor '{tensor.name}' can not be read: {error}"
            problems.append(Problem("PQ508", what, "the file is damaged: export it again", Place(node=tensor.name)))
    if problems:
        raise LoweringError(problems)
    return held


def _read(draft: Draft, node: Node, by_input: Mapping[str, Node]) -> None:
    """One node; nothing where it depends on one that was refused."""
    quantizes = node.proto.op_type in _QUANTIZERS and domain_of(node.proto.domain) in ("qonnx", "pquant_fx.lower.qonnx_ops")
    given = [name for name in node.inputs if name]
    if all(name in draft.constants for name in given):
        if quantizes:
            draft.constants[node.output] = quantized_constant(draft, node)
        else:
            draft.constants.update(_folded(draft, node))
        return
    reader = READERS.get(("qonnx" if quantizes else domain_of(node.proto.domain), node.proto.op_type))
    if reader is None:
        what = f"{node.proto.domain or 'ai.onnx'}::{node.proto.op_type} has no exact fixed-point meaning"
        raise node.refuse(
            "PQ201", what, "take it out of the network, or replace it by operators that have one (README: Will my model compile?)"
        )
    if all(name in draft.constants or name in draft.values for name in given):
        reader(draft, node, by_input)


def _folded(draft: Draft, node: Node) -> dict[str, Constant]:
    """The outputs of a node that reads constants only; what merely moves the elements of a parameter keeps its format."""
    made = fold(node)
    source = draft.constants.get(node.inputs[0]) if node.inputs else None
    move = MOVES.get(node.proto.op_type) if domain_of(node.proto.domain) == "" else None
    if source is None or source.grid is None or move is None:
        return {name: Constant(value, name) for name, value in made.items()}
    return {name: replace(source, values=value, grid=source.grid.moved(move(node))) for name, value in made.items()}


class _Shapes(Mapping[str, tuple[int, ...]]):
    """Sample shapes of computed tensors, as `Node` asks for them."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._draft.sample(name)

    def __iter__(self) -> Any:
        return iter(self._draft.values)

    def __len__(self) -> int:
        return len(self._draft.values)


class _Values(Mapping[str, Any]):
    """Constants of the file, as `Node` asks for them."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __getitem__(self, name: str) -> Any:
        return self._draft.constants[name].values

    def __iter__(self) -> Any:
        return iter(self._draft.constants)

    def __len__(self) -> int:
        return len(self._draft.constants)


def _batch(inputs: list[onnx.ValueInfoProto]) -> int:
    """Samples that the file was written for; 1 where it leaves that open."""
    sizes = [i.type.tensor_type.shape.dim[0].dim_value for i in inputs if i.type.tensor_type.shape.dim]
    return max([int(n) for n in sizes if n] or [1])


def _inputs(draft: Draft, inputs: list[onnx.ValueInfoProto]) -> list[Problem]:
    problems = []
    for value in inputs:
        sizes = [int(d.dim_value) for d in value.type.tensor_type.shape.dim]
        if len(sizes) < 2 or min(sizes[1:]) < 1:
            what = f"input '{value.name}' has the shape {tuple(sizes)}; a batch axis and known sizes of a sample are needed"
            problems.append(Problem("PQ202", what, "export with static shapes, samples first", Place(node=value.name)))
        elif sizes[0] not in (0, draft.batch):
            what = f"input '{value.name}' holds {sizes[0]} samples, another holds {draft.batch}"
            problems.append(Problem("PQ202", what, "export all inputs with the same batch", Place(node=value.name)))
        else:
            draft.input(value.name, sizes[1:])
    return problems


def _result(draft: Draft, names: list[str]) -> Any:
    values = [draft.values[name] for name in names]
    if len(values) == 1:
        return values[0]
    if names == [f"output_{n}" for n in range(len(names))]:
        return tuple(values)
    return dict(zip(names, values))
