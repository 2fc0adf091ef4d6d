"""The table ONNX operator -> node of the dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft
from pquant_fx.lower.qonnx_file.elements import ELEMENT_READERS
from pquant_fx.lower.qonnx_file.moves import MOVE_READERS, MOVES
from pquant_fx.lower.qonnx_file.quantizers import quantize
from pquant_fx.lower.qonnx_file.weighted import WEIGHTED_READERS
from pquant_fx.lower.qonnx_file.windows import WINDOW_READERS

__all__ = ["MOVES", "READERS"]

Reader = Callable[[Draft, Node, Mapping[str, Node]], None]
"""Adds the node to the draft; the mapping gives the node that reads a tensor first."""

_STANDARD = (ELEMENT_READERS, MOVE_READERS, WEIGHTED_READERS, WINDOW_READERS)


def _quantize(d: Draft, node: Node, by_input: Mapping[str, Node]) -> None:
    quantize(d, node)


READERS: dict[tuple[str, str], Reader] = {
    **{("qonnx", name): _quantize for name in ("Quant", "IntQuant", "BipolarQuant", "FixedPoint")},
    **{("", name): reader for readers in _STANDARD for name, reader in readers.items()},
}
"""Domains as `domain_of` names them."""
