"""Values that are copied to more or fewer places (slices, pads, broadcasts), as an hls4ml layer of ours.

hls4ml has no layer that picks values of an array or repeats a pixel. In unrolled circuits this one is wiring; in a stream it
repeats the one packet that a broadcast over all pixels reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pquant_fx.lower.hls4ml.builder import COPIES, Builder, channels_last
from pquant_fx.lower.hls4ml.net import Array, Copy, Ints, refusal
from pquant_fx.lower.hls4ml.ranges import Range

__all__ = ["copy", "kernel", "register_copies"]

_BACKENDS = ("Vivado", "Vitis")


def copy(builder: Builder, op: Copy) -> None:
    """The output keeps the layout of its input: channels last if that is, else in the file's order."""
    source = builder.values[op.inputs[0]]
    stored, order = op.shape, np.arange(op.index.size)
    if len(source.shape) > 1 and len(op.shape) > 1 and (source.order == channels_last(source.shape)[1]).all():
        stored, order = channels_last(op.shape)
    places, index = np.argsort(source.order), op.index[order]
    taken = np.where(index < 0, -1, places[np.maximum(index, 0)])
    repeats = None
    if builder.stream:
        lanes = source.stored[-1]
        if lanes != source.order.size or stored[-1] != lanes or (taken.reshape(-1, lanes) != np.arange(lanes)).any():
            remedy = "use io_type='io_parallel'"
            raise refusal("PQ202", f"io_stream can not copy values of shape {source.shape} to {op.shape}", remedy, op.name)
        repeats = taken.size // lanes
    low, high = (_taken(bound, op.index).reshape(op.shape) for bound in (source.range.low, source.range.high))
    result = Range(source.range.f, low, high)
    name = builder.layer(op, COPIES, [source], result, taken=taken.tolist(), repeats=repeats, target_shape=list(stored))
    builder.put(op, name, stored, order, result)


def _taken(bound: Array, index: Ints) -> Array:
    return np.where(index < 0, 0.0, bound.reshape(-1)[np.maximum(index, 0)])


def kernel(name: str, index: list[int], repeats: int | None) -> str:
    """C++ of the function `name`: element n is the input's element index[n], 0 where that is -1.

    repeats: how often a stream sends the packet that it reads; None: arrays (io_parallel).
    """
    if repeats is None:
        head, size = "data_T data[], res_T res[]", len(index)
        body = [
            "#pragma HLS INLINE",
            f"static const int index[{size}] = {{{', '.join(map(str, index))}}};",
            f"for (unsigned n = 0; n < {size}; n++) {{",
            "    #pragma HLS UNROLL",
            "    res[n] = index[n] < 0 ? res_T(0) : res_T(data[index[n] < 0 ? 0 : index[n]]);",
            "}",
        ]
    else:
        head = "hls::stream<data_T> &data, hls::stream<res_T> &res"
        body = [
            "data_T in = data.read();",
            f"for (unsigned n = 0; n < {repeats}; n++) {{",
            "    #pragma HLS PIPELINE",
            "    res_T out;",
            "    PRAGMA_DATA_PACK(out)",
            "    for (unsigned i = 0; i < res_T::size; i++) {",
            "        #pragma HLS UNROLL",
            "        out[i] = in[i];",
            "    }",
            "    res.write(out);",
            "}",
        ]
    text = "\n".join(f"    {line}" for line in body)
    return f"template <class data_T, class res_T> void {name}({head}) {{\n{text}\n}}\n\n"


def register_copies() -> None:
    """Make the layer known to hls4ml (its extension API), once a process. Attributes: `taken`, the index of `kernel`, and `repeats`."""
    from hls4ml.backends import get_backend
    from hls4ml.backends.template import FunctionCallTemplate
    from hls4ml.model.layers import Layer, layer_map, register_layer
    from hls4ml.model.types import Source

    if COPIES in layer_map:
        return

    class PQuantCopies(Layer):
        def initialize(self) -> None:
            self.add_output_variable(self.get_attr("target_shape"))
            self.set_attr("copies_codegen", Source(kernel(f"{self.name}_copies", self.get_attr("taken"), self.get_attr("repeats"))))

    class Call(FunctionCallTemplate):
        def __init__(self) -> None:
            super().__init__(PQuantCopies, include_header=[])

        def format(self, node: Any) -> str:
            given = self._default_function_params(node)
            return "nnet::{name}_copies<{input_t}, {output_t}>({input}, {output});".format(**given)

    register_layer(COPIES, PQuantCopies)
    for backend in _BACKENDS:
        get_backend(backend).register_template(Call)
