"""Which layers a backend computes with the same bits, found by C simulation of each (with g++ and the headers that hls4ml brings).

Vitis and Vivado have every layer of a plan. The others lack some, and their mean rounds where Vitis does not. oneAPI's C simulation
needs the vendor's compiler: it is held to what Quartus, whose kernels it took over, gets right.
"""

from __future__ import annotations

from pquant_fx.errors import Place, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.lower.hls4ml.builder import Plan
from pquant_fx.lower.hls4ml.casts import LAYER as ELEMENT_CASTS

__all__ = ["OPEN_HEADERS", "backend_problems"]

OPEN_HEADERS = ("Vitis", "Vivado", "Catapult", "Quartus")
"""Backends whose C simulation needs g++ only: ap_types and ac_types are free and part of hls4ml."""

_NEVER = {"AveragePooling1D": "means", "AveragePooling2D": "means", "UnaryLUT": "tables", ELEMENT_CASTS: "formats that differ by element"}
_LACKS = {"Quartus": _NEVER, "oneAPI": _NEVER, "Catapult": _NEVER}
_LACKS_IN_STREAMS = {"Catapult": {"Transpose": "transposes in io_stream"}}
_REMEDY = "use the backend Vitis or Vivado"


def backend_problems(plan: Plan, backend: str, io_type: str) -> list[Problem]:
    """PQ201 for every layer of the plan that the backend does not compute exactly, PQ205 for a result of one bit where it writes two."""
    lacks = {**_LACKS.get(backend, {}), **(_LACKS_IN_STREAMS.get(backend, {}) if io_type == "io_stream" else {})}
    found = []
    for layer in plan.layers:
        place = Place(node=plan.sources[layer["name"]])
        if layer["class_name"] in lacks:
            found.append(Problem("PQ201", f"{backend} computes no {lacks[layer['class_name']]} exactly", _REMEDY, place))
        # hls4ml writes ac_fixed<2, ...> for one bit, as oneAPI's compiler has no smaller type
        elif backend in _LACKS and FixedFormat.parse(plan.types[layer["name"]]["result"])[0].width == 1:
            found.append(Problem("PQ205", f"{backend} has no type of one bit", f"use two bits, or {_REMEDY[4:]}", place))
    return found
