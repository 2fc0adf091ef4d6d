"""interface.json: which bits of the design's ports belong to which value, in which format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pquant_fx.lower.rtl.circuit import Port

if TYPE_CHECKING:
    from pquant_fx.lower.rtl.project import RtlProject

__all__ = ["TOP", "interface"]

TOP = "net"


def interface(project: RtlProject) -> dict[str, Any]:
    return {
        "top": TOP,
        "clock": "clk" if project.cycles else None,
        "cycles": project.cycles,
        "sha256": project.digest,
        "settings": project.settings.labels(),
        "inputs": _bits(project.circuit.inputs, project.circuit.input_kif, "model_inp"),
        "outputs": _bits(project.circuit.outputs, project.circuit.output_kif, "model_out", every=True),
    }


def _bits(ports: Sequence[Port], kif: NDArray[np.int64], vector: str, every: bool = False) -> list[dict[str, Any]]:
    """For each port, in row-major order of its elements: the lowest bit in the vector, or null for an element that is always 0."""
    rows, element, bit = [], 0, 0
    for port in ports:
        low: list[int | None] = []
        formats: list[list[int]] = []
        for used in port.used:
            if not (used or every):
                low.append(None)
                formats.append([0, 0, 0])
                continue
            k, i, f = kif[:, element].tolist()
            low.append(bit if k + i + f > 0 else None)
            formats.append([k, i, f])
            bit += max(k + i + f, 0)
            element += 1
        rows.append({"name": port.name, "vector": vector, "shape": list(port.shape), "lowest_bit": low, "kif": formats})
    return rows
