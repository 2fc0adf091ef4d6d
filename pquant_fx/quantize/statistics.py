"""BatchNorm statistics of a network that never saw data, for the time of a calibration.

Formats calibrated on the initial running statistics (mean 0, variance 1) would fit no batch that training ever sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.constants import evaluating
from pquant_fx.graph.dialect import module_of
from pquant_fx.graph.exactness import lacks_variance

__all__ = ["measured_statistics"]


@contextmanager
def measured_statistics(gm: GraphModule, batches: Sequence[Any]) -> Iterator[None]:
    """Let every BatchCorrection that has seen no batch use the averages over `batches`; the buffers are restored afterwards.

    Batches that are too small to have a variance are left out.
    """
    fresh = [(module, buffers) for module, buffers in _statistics(gm) if int(buffers[2]) == 0]
    saved = [(b, b.clone()) for _, buffers in fresh for b in buffers]
    momenta = [(module, module.momentum) for module, _ in fresh]
    try:
        if fresh:
            with evaluating(gm), torch.no_grad():
                for module, _ in momenta:
                    module.training, module.momentum = True, None  # None: the plain average over batches
                for batch in batches:
                    _run(gm, batch)
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _run(gm: GraphModule, batch: Any) -> None:
    try:
        gm(*(batch if isinstance(batch, tuple | list) else (batch,)))
    except ValueError as error:
        if not lacks_variance(error):
            raise


def _statistics(gm: GraphModule) -> Iterator[tuple[BatchCorrection, list[Tensor]]]:
    """Each correction with its running mean, running variance and batch counter."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, BatchCorrection):
            yield module, [gm.get_buffer(str(a.target)) for a in node.args[1:4] if isinstance(a, Node)]
