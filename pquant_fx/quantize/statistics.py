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
from pquant_fx.quantize.calibration_checks import refuse_bad_parameters
from pquant_fx.quantize.learned import LearnedQuantizer
from pquant_fx.quantize.observers import across_ranks, over_ranks
from pquant_fx.quantize.protocols import StartsFromValue

__all__ = ["measured_statistics"]


@contextmanager
def measured_statistics(gm: GraphModule, batches: Sequence[Any]) -> Iterator[None]:
    """Let every BatchCorrection that has seen no batch use the averages over `batches`; the buffers are restored afterwards.

    Where weights learn their format the averages stay, still counting as no batch: the format begins with the folded weight,
    whose scale they are, and can not follow it fast enough. Batches that are too small to have a variance are left out; under
    torch.distributed the averages are those of all ranks.
    """
    fresh = [(module, buffers) for module, buffers in _statistics(gm) if int(buffers[2]) == 0]
    stay = any(isinstance(m, LearnedQuantizer) and isinstance(m, StartsFromValue) for m in gm.modules())
    saved = [(b, b.clone()) for _, buffers in fresh for b in (buffers[2:] if stay else buffers)]
    momenta = [(module, module.momentum) for module, _ in fresh]
    try:
        if fresh:
            refuse_bad_parameters(gm)  # before they spoil the statistics, too
            with evaluating(gm), torch.no_grad():
                for module, _ in momenta:
                    module.training, module.momentum = True, None  # None: the plain average over batches
                for batch in batches:
                    _run(gm, batch)
                if across_ranks():
                    for _, buffers in fresh:
                        _average(*buffers)
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _average(mean: Tensor, variance: Tensor, batches: Tensor) -> None:
    """Averages over the batches of all ranks, in place."""
    count = over_ranks(batches.to(mean.dtype))
    for buffer in (mean, variance):
        buffer.copy_(torch.where(count > 0, over_ranks(buffer * batches) / count.clamp(min=1), buffer))


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
