"""What every pruning method is: a Mask that goes through three stages, and the hooks by which training moves it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pquant_fx.errors import Problem, TrainingError
from pquant_fx.graph.dialect import Mask
from pquant_fx.prune.layout import Layout

__all__ = ["FIXED", "IDLE", "TRAINING", "Member", "Members", "Pruner", "with_value"]

IDLE, TRAINING, FIXED = 0, 1, 2


class Member(NamedTuple):
    """A mask and the latent weight that it acts on today."""

    mask: Any
    weight: Tensor


Members = Sequence[Member]
"""The masks of one method with one set of settings, in the order of the graph: those that share a budget."""


class Pruner(Mask):
    """W -> effective weight, of W's shape:

    idle (pre-training)     W
    training                `effective(W)`, the method's own
    fixed (fine-tuning)     W * mask, once `fix_` wrote `settled(W)` into W and `hard_mask(W)` into the buffer `mask`

    All that a forward reads is a buffer or a parameter, and nothing changes when it is read: the training moves a method
    through the class methods below, each called with all its `Members`. They may synchronise, a forward may not.

    weight: the latent weight, for its shape, dtype and device. settings: the method's section of the configuration.
    sparsity: the layer's own goal, None for the method's.
    """

    rectified: ClassVar[bool] = False
    """Whether the method is for layers only that a ReLU follows directly."""
    mask: Tensor
    stage: Tensor
    seen: Tensor | None

    def __init__(self, weight: Tensor, settings: Any, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__()
        self.settings: Any = settings
        self.layout = layout or Layout()
        self.target = sparsity
        self.register_buffer("mask", torch.ones_like(weight, requires_grad=False).detach())
        self.register_buffer("stage", torch.tensor(IDLE))
        self.register_buffer("seen", None)
        self._stage = IDLE  # a mirror, so that forward needs no synchronisation

    # ---- what a method says
    @abstractmethod
    def effective(self, weight: Tensor) -> Tensor:
        """The weight as training uses it, of its shape, with the method's own gradients."""

    @abstractmethod
    def hard_mask(self, weight: Tensor) -> Tensor:
        """1 where a weight will stay and 0 where it goes if the mask was fixed now; of the weight's shape."""

    def settled(self, weight: Tensor) -> Tensor:
        """The latent weight with which fine-tuning begins: settled * hard_mask is the last effective weight of training."""
        return weight

    def units(self, weight: Tensor) -> Tensor | None:
        """Factor of each output's bias (outputs,), differentiable as the weights' is; None where no outputs are removed."""
        return None

    def penalty(self, weight: Tensor) -> Tensor | None:
        """What the method adds to the loss in training, 0-d; None for nothing."""
        return None

    @classmethod
    def loss(cls, members: Members) -> Tensor | None:
        """The sum of all penalties, 0-d; a method that can add them up in one go says how."""
        found = [term for mask, weight in members if (term := mask.penalty(weight)) is not None]
        return torch.stack(found).sum() if found else None

    # ---- what it decides by
    def judge_quantized(self, weight: Tensor) -> None:
        """Decide by quantized weights from now on, where the method decides by weights and its masks are 0 or 1.

        `seen` holds them, latent ones until `see` was told; 0/1 masks commute with quantization, so where they act is all the same.
        """
        if not self.settings.latent_because:
            self.seen = weight.detach().clone()

    def see(self, quantized: Tensor) -> None:
        """What decisions are taken by until the next call, of the weight's shape."""
        assert self.seen is not None
        self.seen.copy_(quantized)

    def judged(self, weight: Tensor) -> Tensor:
        """What decisions are taken by: the weight, or its quantized value as `see` was told, with the gradient straight through."""
        return weight if self.seen is None else with_value(weight, self.seen)

    # ---- hooks, for all masks of a method together; training stage only
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        """Training begins: `steps` optimizer steps, 0 included. Overriding methods call it first."""
        for mask, _ in members:
            mask.enter(TRAINING)

    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        """Epoch `epoch` (0-based) of the `epochs` of this round begins."""

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        """Optimizer step `step` (from 1) of all `steps` of the training stage was made."""

    @classmethod
    def end_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        """The last step of an epoch of this round was made."""

    @classmethod
    def measured(cls, members: Members, loss: float) -> None:
        """An epoch of training, or of pre-training (masks are idle then), is over; loss: its mean over the samples, alike on all ranks."""

    @classmethod
    def end_round(cls, members: Members, last: bool) -> None:
        """A round is over; weights are rewound after this, where they are."""

    @classmethod
    def end(cls, members: Members) -> None:
        """Training is over; masks are fixed next."""

    # ---- what is the same for all
    @property
    def is_fixed(self) -> bool:
        return self._stage == FIXED

    @property
    def is_training(self) -> bool:
        """Whether the training stage moves this mask."""
        return self._stage == TRAINING

    def forward(self, weight: Tensor) -> Tensor:
        if self._stage == TRAINING:
            return self.effective(weight)
        return self._attached(weight if self._stage == IDLE else weight * self.mask)

    def _attached(self, value: Tensor) -> Tensor:
        """The same value; what the method learns stays part of the graph where ranks wait for the gradient of every parameter."""
        if self.training and torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.parameters():
                value = value + 0.0 * parameter.sum()
        return value

    def keep(self, weight: Tensor) -> Tensor | None:
        if self._stage == IDLE:
            return None
        return self.mask if self._stage == FIXED else self.hard_mask(weight.detach())

    def sparsity(self, weight: Tensor) -> Tensor:
        kept = self.keep(weight)
        return torch.zeros((), device=weight.device) if kept is None or not kept.numel() else (kept == 0).float().mean()

    def enter(self, stage: int) -> None:
        """Go to another stage; a fixed mask stays fixed."""
        if self._stage != FIXED:
            self._stage = stage
            self.stage.fill_(stage)

    def fix_(self, weight: Tensor) -> None:
        """Harden: the mask stands still from now on, and the weight takes on whatever factor or shrinkage the method gave it."""
        if self._stage == FIXED:
            return
        with torch.no_grad():
            kept, settled = self.hard_mask(weight), self.settled(weight)
            self.mask.copy_(kept)
            weight.copy_(settled * self.mask)
        self.enter(FIXED)

    def reapply_(self, weight: Tensor, optimizer: Optimizer | None = None) -> None:
        """Zero the masked entries of `weight`, and of its optimizer state: momentum and decay move them otherwise."""
        with torch.no_grad():
            weight.mul_(self.mask)
            state = optimizer.state.get(weight, {}) if optimizer is not None and isinstance(weight, nn.Parameter) else {}
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self.mask)

    def check_free(self) -> None:
        """Raises TrainingError (PQ412) once fixed."""
        if self._stage == FIXED:
            raise TrainingError(Problem("PQ412", "a fixed mask was asked to change", "change masks before fine-tuning begins"))

    def extra_repr(self) -> str:
        return f"{self.settings.pruning_method}{', fixed' if self.is_fixed else ''}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._stage = int(self.stage)


def with_value(gradient: Tensor, value: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `gradient`; both finite and of one shape."""
    return value.detach() + (gradient - gradient.detach())
