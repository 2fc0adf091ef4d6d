"""Values that are copied to more or fewer places (slices, pads, broadcasts), as an hls4ml layer of ours.

hls4ml has no layer that picks values of an array or repeats a pixel. In unrolled circuits this one is wiring. In a stream it
repeats the one packet that a broadcast over all pixels reads; any other choice waits until the whole value has arrived.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pquant_fx.lower.hls4ml.builder import COPIES, Builder, channels_last, hls_type
from pquant_fx.lower.hls4ml.net import Array, Copy, Ints
from pquant_fx.lower.hls4ml.ranges import Range

__all__ = ["copy", "kernel", "register_copies"]

_BACKENDS = ("Vivado", "Vitis")
_KERNEL = ("taken", "held", "lanes")


def copy(builder: Builder, op: Copy) -> None:
    """The output keeps the layout of its input: channels last if that is, else in the file's order."""
    source = builder.values[op.inputs[0]]
    stored, order = op.shape, np.arange(op.index.size)
    if len(source.shape) > 1 and len(op.shape) > 1 and (source.order == channels_last(source.shape)[1]).all():
        stored, order = channels_last(op.shape)
    places, index = np.argsort(source.order), op.index[order]
    taken = np.where(index < 0, -1, places[np.maximum(index, 0)])
    low, high = (_taken(bound, op.index).reshape(op.shape) for bound in (source.range.low, source.range.high))
    result = Range(source.range.f, low, high)
    name = builder.copied(op, source, taken, stored, hls_type(result.format))
    builder.put(op, name, stored, order, result)


def _taken(bound: Array, index: Ints) -> Array:
    return np.where(index < 0, 0.0, bound.reshape(-1)[np.maximum(index, 0)])


def kernel(name: str, index: list[int], held: int, lanes: tuple[int, int] | None) -> str:
    """C++ of the function `name`: element n is the input's element index[n] of `held`, 0 where that is -1.

    lanes: how many elements travel together in the stream that is read, and in the one that is written; None: arrays (io_parallel).
    """
    if lanes is None:
        head, body = "data_T data[], res_T res[]", ["#pragma HLS INLINE", *_wired(index)]
    else:
        head = "hls::stream<data_T> &data, hls::stream<res_T> &res"
        one = lanes[0] == lanes[1] == held and index == list(range(held)) * (len(index) // held)
        body = _repeated(len(index) // held) if one else _buffered(index, held, lanes)
    text = "\n".join(f"    {line}" for line in body)
    return f"template <class data_T, class res_T> void {name}({head}) {{\n{text}\n}}\n\n"


def _wired(index: list[int]) -> list[str]:
    return [
        f"static const int index[{len(index)}] = {{{', '.join(map(str, index))}}};",
        f"for (unsigned n = 0; n < {len(index)}; n++) {{",
        "    #pragma HLS UNROLL",
        "    res[n] = index[n] < 0 ? res_T(0) : res_T(data[index[n] < 0 ? 0 : index[n]]);",
        "}",
    ]


def _repeated(times: int) -> list[str]:
    """The one packet that comes, again and again."""
    return [
        "data_T in = data.read();",
        f"for (unsigned n = 0; n < {times}; n++) {{",
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


def _buffered(index: list[int], held: int, lanes: tuple[int, int]) -> list[str]:
    """All packets, then all packets of the result."""
    read, written = lanes
    return [
        f'static_assert(data_T::size == {read} && res_T::size == {written}, "packets of another size");',
        f"static const int index[{len(index)}] = {{{', '.join(map(str, index))}}};",
        f"typename data_T::value_type held[{held}];",
        f"for (unsigned n = 0; n < {held // read}; n++) {{",
        "    #pragma HLS PIPELINE",
        "    data_T in = data.read();",
        f"    for (unsigned i = 0; i < {read}; i++) {{",
        "        #pragma HLS UNROLL",
        f"        held[n * {read} + i] = in[i];",
        "    }",
        "}",
        f"for (unsigned n = 0; n < {len(index) // written}; n++) {{",
        "    #pragma HLS PIPELINE",
        "    res_T out;",
        "    PRAGMA_DATA_PACK(out)",
        f"    for (unsigned i = 0; i < {written}; i++) {{",
        "        #pragma HLS UNROLL",
        f"        int at = index[n * {written} + i];",
        "        out[i] = at < 0 ? typename res_T::value_type(0) : typename res_T::value_type(held[at < 0 ? 0 : at]);",
        "    }",
        "    res.write(out);",
        "}",
    ]


def register_copies() -> None:
    """Make the layer known to hls4ml (its extension API), once a process. Attributes: the arguments of `kernel`."""
    from hls4ml.backends import get_backend
    from hls4ml.backends.template import FunctionCallTemplate
    from hls4ml.model.layers import Layer, layer_map, register_layer
    from hls4ml.model.types import Source

    if COPIES in layer_map:
        return

    class PQuantCopies(Layer):
        def initialize(self) -> None:
            self.add_output_variable(self.get_attr("target_shape"))
            self.set_attr("copies_codegen", Source(kernel(f"{self.name}_copies", *(self.get_attr(a) for a in _KERNEL))))

    class Call(FunctionCallTemplate):
        def __init__(self) -> None:
            super().__init__(PQuantCopies, include_header=[])

        def format(self, node: Any) -> str:
            given = self._default_function_params(node)
            return "nnet::{name}_copies<{input_t}, {output_t}>({input}, {output});".format(**given)

    register_layer(COPIES, PQuantCopies)
    for backend in _BACKENDS:
        get_backend(backend).register_template(Call)
