"""The Callback with which a Lightning Trainer drives a session. Nothing else of the user's LightningModule changes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from pquant_fx.errors import ExtraMissingError, Problem, TrainingError
from pquant_fx.train.foreign import compiled_inside, package, session_inside, the_optimizer
from pquant_fx.train.session import Session

__all__ = ["lightning_callback"]


def lightning_callback(model: nn.Module | None = None) -> Any:
    """A `lightning.pytorch.Callback` (or `pytorch_lightning.Callback`, where only that is installed) for a compiled model.

        class Classifier(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = pq.compile(Net(), "hgq", x)
            ...

        lightning.Trainer(max_epochs=20, callbacks=[pq.lightning_callback()]).fit(Classifier(), loader)

    It adds the loss of the compression methods once an optimizer step, moves schedules on after it, and logs `sparsity`, and
    `ebops` and `beta` where bits are learned. Where the session stands is in Lightning's own checkpoints: `ckpt_path=` goes on.
    model: the compiled model; by default the one among the submodules of the LightningModule.
    Raises ExtraMissingError (PQ503) without Lightning; in training TrainingError (PQ412) when the length is not known
    (`max_epochs`, a DataLoader with a length) or no compiled model is there.
    """
    try:
        base = package("lightning.pytorch.callbacks", "lightning").Callback
    except ExtraMissingError:
        base = package("pytorch_lightning.callbacks", "lightning").Callback
    return type("PQuantCallback", (_Hooks, base), {})(model)


class _Hooks:
    """The hooks, in the order in which they are called."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._session: Session | None = None
        self._state: dict[str, Any] | None = None
        self._due = True  # the loss of this optimizer step was not added yet
        self._steps = 0  # optimizer steps, as the trainer counts them

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        if epochs is None or epochs < 1 or math.isinf(batches):
            remedy = "give the Trainer max_epochs, and data with a length (or limit_train_batches)"
            raise TrainingError(Problem("PQ412", "the length of the training is not known, which schedules need", remedy))
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        model = compiled_inside(pl_module, self._model)
        self._session = session_inside(trainer.model, model, epochs, steps, the_optimizer(trainer.optimizers))
        if self._state is not None:
            self._session.load_state_dict(self._state)
        self._session.__enter__()
        self._steps, self._due = trainer.global_step, True

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self._running.steps == self._running.plan.steps_per_epoch:  # saved after the last step of an epoch, before its end
            self._running.epoch_end()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if not self._due:
            return
        self._due = False
        extra = self._running.extra_loss()
        if extra is not None:
            loss.add_(extra.to(loss.device))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > self._steps:
            self._steps, self._due = trainer.global_step, True
            self._running.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log_dict(self._running.epoch_end(), sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._running.__exit__(None, None, None)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._session is None else self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    @property
    def _running(self) -> Session:
        assert self._session is not None
        return self._session
