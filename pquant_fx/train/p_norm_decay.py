"""Weight decay by the p-norm, which makes small weights exactly smaller than large ones (Outmezguine & Levi 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pquant_fx.errors import Problem, TrainingError

__all__ = ["p_norm_decay"]


def p_norm_decay(optimizer: Optimizer, strength: float, p: float = 1.0) -> tuple[RemovableHandle, RemovableHandle]:
    """Let every step of `optimizer` end with a proximal step on strength * |w|^p, for 0 < p <= 1 (p = 1: like L1).

        w <- w' X / (X + p lr strength),    X = |w before the step|^(2 - p),    w' the weight after the step

        optimizer = torch.optim.Adam(pq.param_groups(model, lr=1e-3))
        pq.p_norm_decay(optimizer, strength=1e-3, p=0.8)

    It acts on the group "weights" of `param_groups`, on every group of an optimizer whose groups have no names. A weight of 0
    stays 0. Returns the handles of its two hooks; `handle.remove()` ends it. Raises TrainingError (PQ412) for a p outside (0, 1], a
    negative strength, and where the optimizer decays these weights itself.
    """
    if not 0 < p <= 1:
        raise TrainingError(Problem("PQ412", f"p is {p}", "give a p above 0 and at most 1; p = 2 is ordinary weight decay"))
    if not strength >= 0:
        raise TrainingError(Problem("PQ412", f"the strength is {strength}", "give a number of at least 0"))
    groups = [group for group in optimizer.param_groups if group.get("name", "weights") == "weights"]
    if any(group.get("weight_decay", 0) for group in groups):
        remedy = "set weight_decay=0: the two would add up"
        raise TrainingError(Problem("PQ412", "the optimizer already decays these weights", remedy))
    before: list[tuple[Tensor, Tensor]] = []

    def remember(*_: Any) -> None:
        before[:] = [(w, w.detach().abs().pow_(2 - p)) for group in groups for w in group["params"] if w.grad is not None]

    def shrink(*_: Any) -> None:
        known = {id(w): x for w, x in before}
        with torch.no_grad():
            for group in groups:
                rate = p * group["lr"] * strength
                for w in group["params"]:
                    if rate and (x := known.get(id(w))) is not None:
                        w.mul_(x / (x + rate))
        before.clear()

    return optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(shrink)
