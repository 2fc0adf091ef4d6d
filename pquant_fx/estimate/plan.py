"""EbopsPlan: the EBOPs of a network in training, as a term of its loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.estimate.bits import check_sign
from pquant_fx.estimate.count import Term, costs_of, opaque, report, terms_of
from pquant_fx.estimate.ebops import Ebops
from pquant_fx.estimate.surrogate import Surrogate

__all__ = ["EbopsPlan"]


class EbopsPlan:
    """`plan()`: the EBOPs of one sample as a 0-d float32 tensor, differentiable in every learned number of bits.

    The surrogate counts relu(i + f) for each element of a quantized value (Sun et al., arXiv 2405.00645), nothing for weights
    that a mask removes. It never synchronises with the host. What has no gradient is as `refresh` found it.

    sign: whose sign bits count: `weights_unsigned` (data only), `hgq2` (of saturating quantizers), `always`. parallel: module
    path (or path@site) -> positions computed at once; a layer counts by that part of its positions. What can not be counted
    is named in `uncounted` and left out. Raises ConfigError (PQ405, PQ407).
    """

    def __init__(self, gm: GraphModule, sign: str = "weights_unsigned", parallel: Mapping[str, int] | None = None) -> None:
        self._reader = Surrogate(gm, check_sign(sign))
        self._terms = terms_of(gm, dict(parallel or {}))
        self.refresh()

    def __call__(self) -> Tensor:
        """EBOPs of one sample, 0-d."""
        if torch.is_autocast_enabled(self._reader.device.type):
            with torch.autocast(self._reader.device.type, enabled=False):
                return self._sum()
        return self._sum()

    def refresh(self) -> None:
        """Measure again what has no gradient: formats that nobody learns, and those of sums without a quantizer. Synchronises.

        To be called after calibration, once in a while in training (each epoch), and when the model moved to another device.
        """
        reader, problems = self._reader, opaque(self._reader.gm)
        reader.refresh()
        still, self._live = torch.zeros((), device=reader.device), list[Term]()
        with torch.no_grad():
            for term, cost in costs_of(reader, self._terms, problems):
                if reader.live:
                    self._live.append(term)
                else:
                    still += cost
                reader.forget()
                reader.live = False
        self._still, self.uncounted = still, tuple(dict.fromkeys(problems))

    def by_node(self) -> Ebops:
        """The surrogate of each operator, as a report. Synchronises."""
        with torch.no_grad():
            self._reader.begin()
            costs = list(costs_of(self._reader, self._terms, []))
        return report(costs, self._reader.sign, "surrogate", self.uncounted)

    def _sum(self) -> Tensor:
        self._reader.begin()
        costs = [cost for term in self._live if (cost := term.ebops(self._reader)) is not None]
        self._reader.forget()  # the tensors of this step must not outlive it
        return torch.stack([self._still, *costs]).sum()
