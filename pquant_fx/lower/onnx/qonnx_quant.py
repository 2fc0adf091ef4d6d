"""Quantizers as nodes of a QONNX file: standard `Quant` nodes wherever they say exactly the same, else our `FixedPoint`.

    RND, input on a grid      Add(x, lsb/2) -> Quant FLOOR
    RND, any other input      Quant FLOOR at lsb/2 -> Add(lsb/2) -> Quant FLOOR      (x + lsb/2 alone would round in float32)
    RND_INF, any other input  Quant DOWN at lsb/2 -> Quant HALF_UP
    parameters                initializer (on its grid already) -> Quant ROUND

Modes of qonnx 1.0: ROUND = RND_CONV, FLOOR = TRN, HALF_UP = RND_INF, HALF_DOWN = RND_ZERO, DOWN = TRN_ZERO.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch.fx import Node

from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.lower.onnx.emission import Emission, Layout
from pquant_fx.lower.onnx.formats import QuantizerFormat, compact, format_of
from pquant_fx.lower.onnx.graph import Value
from pquant_fx.lower.onnx.names import parameter_name
from pquant_fx.lower.onnx.precision import half_sum_is_exact

__all__ = ["OWN_DOMAIN", "QUANT_DOMAIN", "data_quantizer", "parameter", "quant_attributes", "quant_inputs"]

QUANT_DOMAIN = "qonnx.custom_op.general"
OWN_DOMAIN = "pquant_fx.lower.qonnx_ops"
_MODES = {"TRN": "FLOOR", "RND": "FLOOR", "RND_CONV": "ROUND", "RND_INF": "HALF_UP", "RND_ZERO": "HALF_DOWN", "TRN_ZERO": "DOWN"}
Reason = tuple[str, str, str]
_SCALAR = "give it one width for all elements, or export with strict=False"
_MODE = "use SAT or SAT_SYM and one of TRN, TRN_ZERO, RND, RND_CONV, RND_INF, RND_ZERO, or export with strict=False"


def data_quantizer(e: Emission, node: Node, quantizer: Quantizer, x: Value, strict: bool) -> Value:
    """The value of a data quantizer; without an exact standard form a `FixedPoint`, or a problem when `strict`."""
    spec = format_of(quantizer)
    if spec.zero.all():
        nothing = e.constant(node, "zero", 0.0)
        return e.result(node, "Clip", [x, nothing, nothing])
    spec = _simplified(e, node, spec)
    reasons = _obstacles(spec)
    if not reasons:
        return _quant_chain(e, node, spec, x)
    if strict:
        for code, what, remedy in reasons:
            e.refuse(node, code, what, remedy)
    return e.result(node, "FixedPoint", _own_inputs(e, node, spec, x), domain=OWN_DOMAIN, **_own_attributes(spec))


def parameter(e: Emission, node: Node, layout: Layout, strict: bool) -> Value:
    """A parameter: its values as an initializer, through a `Quant` of its own format where it has one."""
    values = e.formats.constants[node].detach().cpu().double().numpy()
    if not (values.astype(np.float32) == values).all():
        e.refuse(node, "PQ303", "its values need more than float32", "give its quantizer at most 24 bits")
    suffix = ".T" if layout == "transposed" else ""
    held = e.graph.constant(f"{parameter_name(node)}{suffix}", values.T if suffix else values)
    quantizer = module_of(e.gm, node)
    if not isinstance(quantizer, Quantizer):
        return held
    source = e.formats.constants.get(node.all_input_nodes[0])
    spec = format_of(quantizer, source)
    if spec.zero.all() or not values.any():
        return held
    spec = spec.transposed() if suffix else spec
    name = e.graph.unique(e.name(node))
    output = Value(name, held.shape)
    reasons = _obstacles(replace(spec, rounding="RND_CONV", overflow="SAT_SYM" if spec.overflow == "SAT_SYM" else "SAT"), parameter=True)
    if not reasons:
        return e.graph.node("Quant", quant_inputs(e, name, spec, held), output, None, QUANT_DOMAIN, quant_attributes(spec, "ROUND"))
    if strict:
        for code, what, remedy in reasons:
            e.refuse(node, code, what, remedy)
    return e.graph.node("FixedPoint", _own_inputs(e, node, spec, held), output, None, OWN_DOMAIN, _own_attributes(spec))


def _simplified(e: Emission, node: Node, spec: QuantizerFormat) -> QuantizerFormat:
    """Modes that the analysis proves to have no effect become the cheapest ones."""
    facts = e.formats.facts.get(node)
    if facts is not None and facts.never_rounds:
        spec = replace(spec, rounding="TRN")
    if facts is not None and facts.never_overflows and spec.overflow != "SAT_SYM":
        spec = replace(spec, overflow="SAT")
    return spec


def _obstacles(spec: QuantizerFormat, parameter: bool = False) -> list[Reason]:
    """Why the quantizer is no standard Quant; empty when it is. Elements of zero width are harmless in parameters: they hold 0."""
    live = ~spec.zero
    reasons: list[Reason] = []
    if len(np.unique(spec.width[live])) > 1 or len(np.unique(spec.k[live])) > 1 or (spec.zero.any() and not parameter):
        widths = ", ".join(sorted({str(int(w)) for w in spec.width.reshape(-1)}, key=int))
        reasons.append(("PQ205", f"its elements have several widths or signs ({widths} bits), a Quant has one", _SCALAR))
    elif spec.k[live].max() == 1 and spec.width[live].max() == 1:
        reasons.append(("PQ205", "a signed format of one bit is bipolar in QONNX, here it means {-1, 0}", "use two bits, or strict=False"))
    if spec.overflow not in ("SAT", "SAT_SYM"):
        reasons.append(("PQ207", f"overflow mode {spec.overflow} may take effect here and a Quant can not express it", _MODE))
    if spec.rounding not in _MODES:
        reasons.append(("PQ207", f"a Quant can not express rounding mode {spec.rounding}", _MODE))
    return reasons


def _quant_chain(e: Emission, node: Node, spec: QuantizerFormat, x: Value) -> Value:
    """A data Quant with what has to stand before it for its rounding mode."""
    name = e.name(node)
    finer = replace(spec, f=spec.f + 1, overflow="SAT")
    exact = half_sum_is_exact(e.formats.intervals.get(node.all_input_nodes[0]), spec.f)
    if spec.rounding in ("RND", "RND_INF") and not exact:
        inputs = quant_inputs(e, f"{name}/floor", finer, x)
        mode = "FLOOR" if spec.rounding == "RND" else "DOWN"
        x = e.step(node, "floor", "Quant", inputs, x.shape, QUANT_DOMAIN, **quant_attributes(finer, mode))
    if spec.rounding == "RND":
        x = e.step(node, "half", "Add", [x, e.constant(node, "half", compact(np.exp2(-spec.f - 1)))], x.shape)
    inputs = quant_inputs(e, name, spec, x)
    return e.result(node, "Quant", inputs, domain=QUANT_DOMAIN, **quant_attributes(spec, _MODES[spec.rounding]))


def quant_inputs(e: Emission, name: str, spec: QuantizerFormat, x: Value) -> list[Value]:
    """x, scale, zero point, bit width. Elements of zero width (constants 0) share the finest scale of the others."""
    finest = spec.f[~spec.zero].max()
    scale = np.exp2(-np.where(spec.zero, finest, spec.f))
    parts = (("scale", compact(scale)), ("zero", 0.0), ("bits", spec.width.max()))
    return [x, *(e.graph.constant(f"{name}.{what}", value) for what, value in parts)]


def quant_attributes(spec: QuantizerFormat, rounding: str) -> dict[str, int | str]:
    """narrow, rounding_mode, signed."""
    signed = int(spec.k[~spec.zero].max())
    return {"narrow": int(bool(signed) and spec.overflow == "SAT_SYM"), "rounding_mode": rounding, "signed": signed}


def _own_inputs(e: Emission, node: Node, spec: QuantizerFormat, x: Value) -> list[Value]:
    return [x, *(e.constant(node, what, compact(value)) for what, value in (("k", spec.k), ("i", spec.i), ("f", spec.f)))]


def _own_attributes(spec: QuantizerFormat) -> dict[str, str]:
    return {"overflow": spec.overflow, "rounding": spec.rounding}
