"""What flows over an edge, measured for the methods that prune by it: a node of ours, gone when the network is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pquant_fx.errors import Problem, TrainingError

__all__ = ["ActivationStatistics", "Quantity"]

Quantity = Literal["square", "active", "rectified"]
_QUANTITIES: dict[Quantity, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "active": lambda x: (x > 0).float(),
    "rectified": torch.relu,
}


class ActivationStatistics(nn.Module):
    """x -> x. While it collects, in train mode, it sums a quantity of every channel over samples and positions:

        square     x^2                what a layer takes in (Wanda)
        active     1 where x > 0      what a ReLU behind it lets through
        rectified  relu(x)            the same with its size

    channels: how many there are. axis: of a value that counts them, 1 or -1. of: whether the layer's `input` or its `output` is
    looked at. What a step saw is kept apart (`recent`) until `gather` has added up all ranks: DistributedDataParallel copies the
    buffers of the first one to all others before each forward. An idle one is left out of the graph that runs (see `fusion`).
    """

    total: Tensor
    recent: Tensor
    collecting: Tensor

    def __init__(self, channels: int, axis: int, quantity: Quantity, of: Literal["input", "output"], device: Any = None) -> None:
        super().__init__()
        self.channels, self.axis, self.quantity, self.of = channels, axis, quantity, of
        for name in ("total", "recent"):  # the sums, and behind them how many values of a channel they are of
            self.register_buffer(name, torch.zeros(channels + 1, dtype=torch.float64, device=device))
        self.register_buffer("collecting", torch.tensor(False, device=device))
        self._collecting = False  # a mirror, so that forward needs no synchronisation

    def forward(self, x: Tensor) -> Tensor:
        if self._collecting and self.training:
            self._note(x.detach())
        return x

    def _note(self, x: Tensor) -> None:
        with torch.no_grad():
            values = _QUANTITIES[self.quantity](x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
            sums = values.sum([axis for axis in range(x.dim()) if axis != self.axis % x.dim()])
            count = x.numel() // self.channels
            self.recent += torch.cat((sums, sums.new_full((1,), count))).to(self.recent)

    # ---- for the methods; these may synchronise
    @property
    def is_collecting(self) -> bool:
        return self._collecting

    def begin(self) -> None:
        """Collect from now on, from nothing."""
        self.total.zero_()
        self.recent.zero_()
        self._collect(True)

    def end(self) -> None:
        """Collect no more; what was seen stays."""
        self._collect(False)

    def gather(self, add_ranks: Callable[[Tensor], None]) -> None:
        """Count what was seen since the last call. add_ranks: adds up a tensor over all ranks, in place; called by all of them."""
        with torch.no_grad():
            add_ranks(self.recent)
            self.total += self.recent
            self.recent.zero_()

    def means(self) -> Tensor:
        """The mean of each channel's quantity over all that was gathered, (channels,), float64.

        Raises TrainingError: PQ412 where nothing was, PQ411 where it is not finite.
        """
        means = self.total[:-1] / self.total[-1]
        if not float(self.total[-1]):
            remedy = "call model.train() before each epoch, and step() only after a forward"
            raise TrainingError(Problem("PQ412", "a layer is to be pruned by its activations, but no batch went through it", remedy))
        if not bool(means.isfinite().all()):
            what = "the activations by which a layer is to be pruned are not finite"
            raise TrainingError(Problem("PQ411", what, "lower the learning rate, and check the data for NaN and infinity"))
        return means

    def _collect(self, on: bool) -> None:
        self._collecting = on
        self.collecting.fill_(on)

    def extra_repr(self) -> str:
        return f"{self.quantity} of {self.channels} channels{', collecting' if self._collecting else ''}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._collecting = bool(self.collecting)
