"""`pq.from_qonnx`: a QONNX file of ours, of Brevitas or of QKeras as a frozen network that every target takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from pquant_fx.config import Config, load_config
from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.frozen import FrozenModel
from pquant_fx.frozen_target import LayerTypes
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.inputs import InputSpec, input_specs
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.support import unsupported
from pquant_fx.graph.verify import verify
from pquant_fx.passes.bake_tables import bake_tables
from pquant_fx.quantize.quantizers import FixedQuantizer

if TYPE_CHECKING:
    import onnx

__all__ = ["from_qonnx"]


def from_qonnx(model: onnx.ModelProto | str | os.PathLike[str], *, inputs: Mapping[str, str | FixedFormat] | None = None) -> FrozenModel:
    """Read a QONNX file (Pappalardo et al. 2022) as a frozen network: the integers that the file's real arithmetic means, exactly.

    model: a path or an onnx.ModelProto, NCHW as the tools write it. inputs: formats of inputs that the file does not quantize
    itself ("fixed<8,3>", rounded RND and SAT), by input name.
    The result verifies, estimates and exports like any frozen model; its names and source lines are those of the file's nodes.
    Raises LoweringError with all problems at once, each naming its node: PQ508 for a file that is damaged or cyclic, PQ201 for
    operators, PQ202 for options and for scales that are no powers of two, PQ207 for modes, PQ303 for values that are too wide,
    PQ305 for NaN; ConfigError (PQ405) for an unknown input; ExtraMissingError (PQ503) without the package onnx.

    Example: pq.from_qonnx("net.onnx").to_hls4ml("build/net")
    """
    from pquant_fx.lower.qonnx_file.read import read_graph

    gm = read_graph(model)
    _quantize_inputs(gm, inputs or {})
    bake_tables(gm)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()
    verify(gm)
    formats = analyse(gm)
    problems = unsupported(gm, formats=formats)
    if problems:
        raise LoweringError(problems)
    return FrozenModel(gm, formats, _Origin(load_config("float"), input_specs(gm), _layers(gm)))


@dataclass(frozen=True)
class _Origin:
    """What a frozen model wants to know about where it comes from; a file has no configuration."""

    config: Config
    _inputs: Mapping[str, InputSpec]
    _layers: LayerTypes

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    def _counting(self) -> dict[str, Any]:
        return {"sign": self.config.quantization_parameters.ebops_sign, "parallel": {}}

    def _types(self) -> LayerTypes:
        return self._layers


def _layers(gm: GraphModule) -> LayerTypes:
    """Rules name the nodes of a file, or operators."""
    return {(info(n).path or n.name, info(n).site): op.name for n in gm.graph.nodes if (op := op_of(n)) is not None}


def _quantize_inputs(gm: GraphModule, formats: Mapping[str, str | FixedFormat]) -> None:
    """A quantizer on each named input, in front of everything that reads it."""
    nodes = {str(n.target): n for n in gm.graph.nodes if n.op == "placeholder"}
    unknown = [name for name in formats if name not in nodes]
    if unknown:
        remedy = f"the file's inputs are {', '.join(nodes)}"
        raise ConfigError([Problem("PQ405", f"the file has no input '{name}'", remedy) for name in unknown])
    rw = Rewriter(gm)
    for name, given in formats.items():
        node = nodes[name]
        fmt, rounding, overflow = FixedFormat.parse(given) if isinstance(given, str) else (given, "RND", "SAT")
        readers = list(node.users)
        with rw.after(node):
            made = rw.call_module(rw.own(f"{name}.quantizer", FixedQuantizer(fmt.k, fmt.i, fmt.f, rounding, overflow).eval()), node)
        set_info(made, info(node))
        for reader in readers:
            rw.redirect(reader, node, made)
