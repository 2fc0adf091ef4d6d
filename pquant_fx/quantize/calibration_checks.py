"""What calibration refuses: numbers that are none, and quantizers where they can not work."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.errors import CalibrationError, Problem
from pquant_fx.graph.dialect import attribute_at, is_parameter_value, module_of
from pquant_fx.graph.info import place
from pquant_fx.quantize.observers import Observer
from pquant_fx.quantize.protocols import StartsFromValue

__all__ = ["refuse_bad_parameters", "refuse_bad_values", "refuse_misplaced"]


def refuse_misplaced(gm: GraphModule) -> None:
    """Raise CalibrationError (PQ412) for quantizers of parameters that stand on data."""
    found = [n for n in gm.graph.nodes if isinstance(module_of(gm, n), StartsFromValue) and not is_parameter_value(n)]
    remedy = "use CalibratedQuantizer or HGQData there: one format for all batches"
    if found:
        what = "'{}' takes its format from the value of a parameter, but it quantizes data"
        raise CalibrationError([Problem("PQ412", what.format(n.target), remedy, place(n)) for n in found])


def refuse_bad_parameters(gm: GraphModule) -> None:
    """Raise CalibrationError (PQ305) for every parameter and buffer in use that holds NaN or infinity."""
    found: dict[str, tuple[Node, Tensor]] = {}
    for node in gm.graph.nodes:
        path = str(node.target)
        if node.op == "get_attr" and path not in found:
            value = attribute_at(gm, path)
            if isinstance(value, Tensor) and value.is_floating_point():
                found[path] = (node, value.detach().isfinite().all())
    _refuse(list(found.values()), "parameter '{}' holds NaN or infinity", "load an undamaged checkpoint before calibrating")


def refuse_bad_values(gm: GraphModule, observed: Mapping[Node, Observer]) -> None:
    """Raise CalibrationError (PQ305) for inputs that held NaN or infinity, else for the first value inside that did."""
    order = {node: at for at, node in enumerate(gm.graph.nodes)}
    flags: list[tuple[Node, Tensor]] = []
    for node in sorted(observed, key=order.__getitem__):
        if observed[node].seen:
            low, high = observed[node].extremes
            flags.append((node, (low.isfinite() & high.isfinite()).all()))
    inputs = [flag for flag in flags if flag[0].op == "placeholder"]
    _refuse(inputs, "calibration data for input '{}' holds NaN or infinity", "remove such samples, or fill the missing values")
    inner = [flag for flag in flags if flag[0].op != "placeholder"]
    what = "the value that '{}' quantizes became NaN or infinite on the calibration data"
    _refuse(inner, what, "look at the operations before it: a division by zero, a logarithm, a diverged parameter", first=True)


def _refuse(flags: list[tuple[Node, Tensor]], what: str, remedy: str, first: bool = False) -> None:
    """Raise CalibrationError (PQ305) for the nodes whose flag is False; only for the first where later ones follow from it."""
    if not flags:
        return
    fine = torch.stack([flag for _, flag in flags]).tolist()
    bad = [node for (node, _), ok in zip(flags, fine) if not ok]
    if bad:
        named = bad[:1] if first else bad
        raise CalibrationError([Problem("PQ305", what.format(n.target), remedy, place(n)) for n in named])
