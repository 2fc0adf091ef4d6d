"""Which quantizer a place gets: from its settings, and the shape and kind of the value, to a module.

| kind       | weights                                 | data                                         | format                         |
|------------|-----------------------------------------|----------------------------------------------|--------------------------------|
| (a format) | FixedQuantizer                          | FixedQuantizer                               | given                          |
| dynamic    | DynamicQuantizer                        | TrackedQuantizer                             | follows the weights / the data |
| calibrated |                                         | CalibratedQuantizer                          | from observed data             |
| tqt, lsq   | TQTWeight, LSQWeight                    | TQTData, LSQData                             | width given, range learned     |
| pact       |                                         | PACTData; TQTData for values of both signs   | width given, clip learned      |
| hgq        | HGQWeight                               | HGQData                                      | bits learned                   |

Biases are rounded to the grid of the accumulator; beside learned weight bits they learn their own.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from torch.fx import Node

from pquant_fx.config import Config, LayerSettings
from pquant_fx.formats import FixedFormat
from pquant_fx.graph.batch import has_batch_axis
from pquant_fx.graph.dialect import Quantizer, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.values import channel_axis
from pquant_fx.quantize import (
    AccumulatorQuantizer,
    CalibratedQuantizer,
    DynamicQuantizer,
    FixedQuantizer,
    TrackedQuantizer,
    make_learned,
)

__all__ = ["bias_quantizer", "data_quantizer", "weight_quantizer"]

Shape = tuple[int, ...]


def data_quantizer(settings: LayerSettings, config: Config, node: Node, *, unsigned: bool) -> Quantizer:
    """The quantizer of the value of `node`. unsigned: it can not be negative, so that the format needs no sign bit."""
    modes: dict[str, Any] = {"rounding": settings.data_rounding, "overflow": settings.data_overflow}
    if settings.data_format is not None:
        return FixedQuantizer(*_kif(settings.data_format), **modes)
    op, calibration = op_of(node), config.calibration
    options: dict[str, Any] = {
        **modes,
        "non_negative": unsigned,
        "method": calibration.method,
        "percentile": calibration.percentile,
        "safety_bits": calibration.safety_bits,
    }
    kind, table = settings.data_quantizer, op is not None and op.kind == "table"
    shape = () if table and kind == "hgq" else _data_shape(settings, node)
    if kind == "calibrated":
        return CalibratedQuantizer(settings.data_bits, shape, **options)
    if kind == "dynamic":
        return TrackedQuantizer(settings.data_bits, shape, **options)
    if kind == "hgq":
        options |= _grouping(config, info(node).shape, shape, batched=True)
    if kind == "hgq" and table:
        del options["overflow"]  # a table's own: SAT_SYM
    if kind == "pact" and not unsigned:
        kind = "tqt"  # clipping at zero would take the negative half away
    return make_learned(kind, "table" if table and kind == "hgq" else "data", shape, settings.data_bits, **options)


def weight_quantizer(settings: LayerSettings, config: Config, shape: Shape | None, axis: int | None) -> Quantizer:
    """The quantizer of a weight of that shape (None: not known); axis: that of the output channels, None for the whole tensor."""
    modes: dict[str, Any] = {"rounding": settings.weight_rounding, "overflow": settings.weight_overflow}
    if settings.weight_format is not None:
        return FixedQuantizer(*_kif(settings.weight_format), **modes)
    if settings.weight_quantizer == "dynamic":
        where: int | Literal["each"] | None = None if settings.granularity == "per_tensor" else axis
        where = "each" if settings.granularity == "per_weight" else where
        return DynamicQuantizer(settings.weight_bits, where, **modes, range=settings.weight_range, shape=shape)
    groups = _weight_shape(settings, shape, axis)
    if settings.weight_quantizer == "hgq":
        modes |= _grouping(config, shape, groups)
    return make_learned(settings.weight_quantizer, "weight", groups, settings.weight_bits, **modes)


def bias_quantizer(settings: LayerSettings, config: Config, shape: Shape | None) -> Quantizer:
    """The quantizer of a bias: a given format, learned bits beside learned weights, or the grid of the accumulator."""
    if settings.bias_format is not None:
        return FixedQuantizer(*_kif(settings.bias_format), settings.weight_rounding, settings.weight_overflow)
    if settings.weight_quantizer == "hgq" and settings.weight_format is None:
        groups = shape if settings.granularity != "per_tensor" and shape is not None else ()
        options = _grouping(config, shape, groups)
        return make_learned("hgq", "bias", groups, settings.weight_bits, rounding=settings.weight_rounding, **options)
    return AccumulatorQuantizer(rounding=settings.weight_rounding)


def _data_shape(settings: LayerSettings, node: Node) -> Shape:
    """The shape of k, i, f of a data value: the batch axis is always shared."""
    shape = info(node).shape
    if shape is None or len(shape) < 2 or not has_batch_axis(node):
        return ()
    granularity = settings.data_granularity_for(len(shape))
    if granularity == "per_tensor":
        return ()
    axis = channel_axis(node)
    return tuple(1 if at == 0 or (granularity == "per_channel" and at != axis) else size for at, size in enumerate(shape))


def _weight_shape(settings: LayerSettings, shape: Shape | None, axis: int | None) -> Shape:
    if shape is None or settings.granularity == "per_tensor" or (settings.granularity == "per_channel" and axis is None):
        return ()
    return shape if settings.granularity == "per_weight" else tuple(size if at == axis else 1 for at, size in enumerate(shape))


def _grouping(config: Config, shape: Shape | None, groups: Shape, batched: bool = False) -> dict[str, Any]:
    """How many values share a format, and whether the resource gradient is divided by its root."""
    sample = () if shape is None else shape[1:] if batched else shape
    size = prod(sample) // max(prod(groups), 1)
    return {"group_size": max(size, 1), "group_grad_norm": config.quantization_parameters.group_grad_norm}


def _kif(fmt: FixedFormat) -> tuple[int, int, int]:
    return fmt.k, fmt.i, fmt.f
