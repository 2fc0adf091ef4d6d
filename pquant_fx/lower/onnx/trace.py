"""Every value of a network as an ONNX runtime computes it: the same file, with all of its values as outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pquant_fx.lower.onnx.emission import Emission
from pquant_fx.lower.onnx.graph import information

if TYPE_CHECKING:
    import onnx

__all__ = ["traced"]

Arrays = Sequence[npt.NDArray[Any]]


def traced(emission: Emission) -> tuple[onnx.ModelProto, Callable[[Arrays], dict[str, npt.NDArray[np.float64]]]]:
    """(file, values): values(outputs of the file, in their order) names them by the nodes of the graph."""
    model = emission.run()
    taken = {v.name for v in (*model.graph.input, *model.graph.output)}
    more = {v.name: v for v in emission.values.values() if v.name not in taken}
    model.graph.output.extend(information(v) for v in more.values())
    inner = [v for v in model.graph.value_info if v.name not in more]
    del model.graph.value_info[:]
    model.graph.value_info.extend(inner)

    def values(outputs: Arrays) -> dict[str, npt.NDArray[np.float64]]:
        found = dict(zip((o.name for o in model.graph.output), outputs, strict=True))
        return {n.name: np.asarray(found[v.name], dtype=np.float64) for n, v in emission.values.items() if v.name in found}

    return model, values
