"""hls4ml's layers in io_stream as processes: the loops of its Vitis and Vivado kernels, read for read and write for write.

Latencies are those of adder trees and multipliers as HLS usually schedules them at some 5 ns, rounded up: the depth of a
multiplier (3), one cycle for each level of the tree, 2 for rounding and saturation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pquant_fx.errors import Problem
from pquant_fx.lower.hls4ml.casts import LAYER as ELEMENT_CASTS
from pquant_fx.lower.hls4ml.options import Options
from pquant_fx.lower.hls4ml.stream_depths import fifo_depths
from pquant_fx.lower.hls4ml.stream_network import Process, StreamNetwork, pipelined, sink, source

__all__ = ["UnknownStreams", "set_fifo_depths", "stream_network"]

Steps = list[tuple[tuple[int, ...], bool]]
_CLOCK = 5.0  # ns


class UnknownStreams(Exception):
    """A layer whose reads and writes are not known here."""


def stream_network(graph: Any) -> StreamNetwork:
    """The processes of an hls4ml graph in io_stream (Vitis, Vivado). Raises UnknownStreams with the name of a layer or FIFO."""
    processes: list[Process] = []
    for layer in graph.graph.values():
        if layer.class_name == "Reshape":  # one shape is as good as another to a stream that is read in order
            continue
        if layer.class_name == "Input":
            processes.append(source(_stream(layer.get_output_variable()), _pixels(layer.get_output_variable())))
        elif layer.class_name in _LAYERS:
            processes.append(_LAYERS[layer.class_name](layer))
        else:
            raise UnknownStreams(f"layer '{layer.name}' ({layer.class_name})")
    processes += [sink(_stream(variable), _pixels(variable)) for variable in graph.get_output_variables()]
    network = StreamNetwork(tuple(processes))
    for fifo in network.unbalanced:
        raise UnknownStreams(f"stream '{fifo}'")
    return network


def set_fifo_depths(graph: Any, options: Options) -> tuple[dict[str, int], list[Problem]]:
    """Give every FIFO of the graph the depth that it needs; returns them, without the ports, and notes.

    No depths where hls4ml's own stand: io_parallel, `whole`, a backend whose kernels read otherwise, an unknown layer (PQ202, a note).
    """
    if (options.io_type, options.fifo_depths) != ("io_stream", "static") or options.backend not in ("Vitis", "Vivado"):
        return {}, []
    try:
        depths = fifo_depths(stream_network(graph))
    except UnknownStreams as error:
        what = f"it is not known what {error} reads and writes, so all FIFOs hold a whole image"
        return {}, [Problem("PQ202", what, "report it with the QONNX file", severity="info")]
    for variable in (*graph.get_input_variables(), *graph.get_output_variables()):
        depths.pop(_stream(variable), None)
    for variable in graph.output_vars.values():
        if variable.name in depths and not hasattr(variable, "input_var"):
            variable.pragma = ("stream", depths[variable.name])
    return depths, []


def _stream(variable: Any) -> str:
    """The FIFO of a variable; a reshaped one shares that of its input."""
    while hasattr(variable, "input_var"):
        variable = variable.input_var
    return str(variable.name)


def _pixels(variable: Any) -> int:
    """Tokens of one sample: all but the last axis, which travels together."""
    while hasattr(variable, "input_var"):
        variable = variable.input_var
    return int(np.prod(variable.shape[:-1], dtype=np.int64))


def _inputs(layer: Any) -> list[str]:
    return [_stream(layer.get_input_variable(name)) for name in layer.inputs]


def _outputs(layer: Any) -> list[str]:
    return [_stream(layer.get_output_variable(name)) for name in layer.outputs]


def _latency(layer: Any, terms: int) -> int:
    """Cycles of a sum of so many products. A faster clock needs more of them for the same logic."""
    period = float(layer.model.config.get_config_value("ClockPeriod") or _CLOCK)
    return math.ceil((5 + math.ceil(math.log2(max(terms, 1)))) * max(1.0, _CLOCK / period))


def _each(latency: int) -> Callable[[Any], Process]:
    """One token of every input, one result."""

    def made(layer: Any) -> Process:
        inputs = _inputs(layer)
        return pipelined(
            layer.name, inputs, _outputs(layer), [(tuple(range(len(inputs))), True)] * _pixels(layer.get_input_variable()), latency
        )

    return made


def _attribute(layer: Any, name: str, otherwise: int) -> int:
    value = layer.get_attr(name)
    return otherwise if value is None else int(value)


def _window(layer: Any, kernel: str) -> list[bool]:
    """Whether a result comes with each pixel that a line buffer takes in."""
    height, width = _attribute(layer, "in_height", 1), int(layer.get_attr("in_width") or layer.get_attr("n_in"))
    axes = []
    for size, axis in ((height, "height"), (width, "width")):
        taps, stride = _attribute(layer, f"{kernel}_{axis}", 1), _attribute(layer, f"stride_{axis}", 1)
        axes.append([at >= taps - 1 and (at - taps + 1) % stride == 0 for at in range(size)])
    return [row and column for row in axes[0] for column in axes[1]]


def _convolution(layer: Any) -> Process:
    """Latency strategies: one pixel every `reuse_factor` cycles. Resource: a pixel is finished before the next one is read."""
    complete = _window(layer, "filt")
    terms = int(layer.get_attr("n_chan")) * _attribute(layer, "filt_height", 1) * _attribute(layer, "filt_width", 1)
    return _multiplying(layer, [((0,), result) for result in complete], terms)


def _multiplying(layer: Any, steps: Steps, terms: int) -> Process:
    reuse, latency = int(layer.get_attr("reuse_factor")), _latency(layer, terms)
    if layer.get_attr("strategy") in ("latency", "distributed_arithmetic"):
        return pipelined(layer.name, _inputs(layer), _outputs(layer), steps, latency + reuse - 1, reuse)
    slow: Steps = []
    for read, result in steps:
        slow += [(read, False), *[((), False)] * (latency + reuse - 1), ((), True)] if result else [(read, False), ((), False)]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), slow, 0)


def _pool(layer: Any) -> Process:
    window = _attribute(layer, "pool_height", 1) * _attribute(layer, "pool_width", 1)
    steps: Steps = [((0,), result) for result in _window(layer, "pool")]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), steps, 2 + math.ceil(math.log2(window)))


def _dense(layer: Any) -> Process:
    """Reads all, computes, writes one vector."""
    tokens = _pixels(layer.get_input_variable())
    latency = _latency(layer, int(layer.get_attr("n_in"))) + int(layer.get_attr("reuse_factor")) - 1
    steps: Steps = [*[((0,), False)] * tokens, *[((), False)] * latency, ((), True)]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), steps, 0)


def _padding(layer: Any) -> Process:
    top, bottom, left, right = (_attribute(layer, f"pad_{side}", 0) for side in ("top", "bottom", "left", "right"))
    height, width = _attribute(layer, "in_height", 1), int(layer.get_attr("in_width"))
    empty: Steps = [((), True)]
    row: Steps = [*empty * left, *[((0,), True)] * width, *empty * right]
    steps = [*empty * (top * len(row)), *row * height, *empty * (bottom * len(row))]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), steps)


def _concatenation(layer: Any) -> Process:
    """Along the channels one token of each, along rows or columns one input after the other."""
    shapes = [tuple(layer.get_input_variable(name).shape) for name in layer.inputs]
    axis = int(layer.get_attr("axis"))
    axis = axis % len(shapes[0]) if axis < 0 else axis - 1  # hls4ml counts the batch
    if axis == len(shapes[0]) - 1:
        return _each(2)(layer)
    outer = int(np.prod(shapes[0][:axis], dtype=np.int64))
    part: Steps = [((k,), True) for k, shape in enumerate(shapes) for _ in range(int(np.prod(shape[axis:-1], dtype=np.int64)))]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), part * outer, 2)


def _transpose(layer: Any) -> Process:
    before, after = _pixels(layer.get_input_variable()), _pixels(layer.get_output_variable())
    steps: Steps = [*[((0,), False)] * before, *[((), True)] * after]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), steps)


def _repack(layer: Any) -> Process:
    before, after = _pixels(layer.get_input_variable()), _pixels(layer.get_output_variable())
    many, few = max(before, after), min(before, after)
    ratio = many // few
    if before >= after:
        part: Steps = [*[((0,), False)] * (ratio - 1), ((0,), True)]
    else:
        part = [((0,), True), *[((), True)] * (ratio - 1)]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), part * few)


def _resize(layer: Any) -> Process:
    """Nearest neighbour: a row is read whole, then written as often as it is repeated."""
    height, width = _attribute(layer, "in_height", 1), int(layer.get_attr("in_width"))
    written = _pixels(layer.get_output_variable()) // height
    part: Steps = [*[((0,), False)] * width, *[((), True)] * written]
    return pipelined(layer.name, _inputs(layer), _outputs(layer), part * height)


_LAYERS: dict[str, Callable[[Any], Process]] = {
    **dict.fromkeys(("Activation", "UnaryLUT", "Merge", ELEMENT_CASTS), _each(2)),
    **dict.fromkeys(("BatchNormalization", "ApplyAlpha"), _each(4)),
    **dict.fromkeys(("Conv1D", "Conv2D", "PointwiseConv1D", "PointwiseConv2D"), _convolution),
    **dict.fromkeys(("Pooling1D", "Pooling2D"), _pool),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), _padding),
    "Clone": _each(1),
    "Concatenate": _concatenation,
    "Dense": _dense,
    "Repack": _repack,
    "Resize": _resize,
    "Transpose": _transpose,
}
