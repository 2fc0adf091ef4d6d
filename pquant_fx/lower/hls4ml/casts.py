"""A cast of its own for every element, as an hls4ml layer of ours.

hls4ml 1.3 has such a layer (`FixedPointQuantizer`), but only for io_parallel and without AP_WRAP_SM. In a stream the
elements that travel together, the channels of one pixel, can have formats of their own just as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pquant_fx.lower.hls4ml.net import Ints

__all__ = ["LAYER", "element_casts", "kernel", "register_casts"]

LAYER = "PQuantElementCasts"
_BACKENDS = ("Vivado", "Vitis")


def _ap_type(k: int, i: int, f: int, rounding: str, overflow: str) -> str:
    """`ap_fixed<W, I, AP_RND, AP_SAT>` (AMD UG1399); I counts the sign."""
    return f"ap_{'' if k else 'u'}fixed<{k + i + f}, {k + i}, AP_{rounding}, AP_{overflow}>"


def element_casts(k: Ints, i: Ints, f: Ints, zero: npt.NDArray[np.bool_], rounding: str, overflow: str) -> list[str | None]:
    """The types of flat arrays of formats, None where nothing but 0 comes out."""
    formats = zip(k.tolist(), i.tolist(), f.tolist(), zero.tolist(), strict=True)
    return [None if nothing else _ap_type(k, i, f, rounding, overflow) for k, i, f, nothing in formats]


def kernel(name: str, casts: Sequence[str | None], reads: int | None) -> str:
    """C++ of the function `name`: element n through the type casts[n], or 0 where that is None.

    reads: how many packets of len(casts) elements a stream brings; None: arrays (io_parallel).
    """
    source, target = ("data", "res") if reads is None else ("in", "out")
    lines = [f"{target}[{n}] = {f'{cast}({source}[{n}])' if cast else 0};" for n, cast in enumerate(casts)]
    if reads is None:
        head, body = f"data_T data[{len(casts)}], res_T res[{len(casts)}]", ["#pragma HLS INLINE", *lines]
    else:
        head = "hls::stream<data_T> &data, hls::stream<res_T> &res"
        check = f'static_assert(data_T::size == {len(casts)} && res_T::size == {len(casts)}, "one cast per element of a packet");'
        loop = ["#pragma HLS PIPELINE", "data_T in = data.read();", "res_T out;", "PRAGMA_DATA_PACK(out)", *lines, "res.write(out);"]
        body = [check, f"for (unsigned n = 0; n < {reads}; n++) {{", *(f"    {line}" for line in loop), "}"]
    text = "\n".join(f"    {line}" for line in body)
    return f"template <class data_T, class res_T> void {name}({head}) {{\n{text}\n}}\n\n"


def register_casts() -> None:
    """Make the layer known to hls4ml (its extension API), once a process. Attributes: `casts` and `reads` as in `kernel`."""
    from hls4ml.backends import get_backend
    from hls4ml.backends.template import FunctionCallTemplate
    from hls4ml.model.layers import Layer, layer_map, register_layer
    from hls4ml.model.types import Source

    if LAYER in layer_map:
        return

    class PQuantElementCasts(Layer):
        def initialize(self) -> None:
            self.add_output_variable(self.get_input_variable().shape)
            self.set_attr("casts_codegen", Source(kernel(f"{self.name}_casts", self.get_attr("casts"), self.get_attr("reads"))))

    class Call(FunctionCallTemplate):
        def __init__(self) -> None:
            super().__init__(PQuantElementCasts, include_header=[])

        def format(self, node: Any) -> str:
            given = self._default_function_params(node)
            return "nnet::{name}_casts<{input_t}, {output_t}>({input}, {output});".format(**given)

    register_layer(LAYER, PQuantElementCasts)
    for backend in _BACKENDS:
        get_backend(backend).register_template(Call)
