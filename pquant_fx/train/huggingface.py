"""The TrainerCallback with which a Hugging Face Trainer drives a session."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pquant_fx.errors import Problem, TrainingError, TransferError
from pquant_fx.files import write_atomically
from pquant_fx.train.foreign import compiled_inside, package, session_inside, the_optimizer
from pquant_fx.train.session import Session

__all__ = ["huggingface_callback"]

_FILE = "pquant_fx.pt"


def huggingface_callback(model: nn.Module | None = None) -> Any:
    """A `transformers.TrainerCallback` for a compiled model.

        class ForTrainer(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = pq.compile(Net(), "hgq", x)
            def forward(self, x, labels):
                logits = self.model(x)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        Trainer(ForTrainer(), TrainingArguments("out", num_train_epochs=20), train_dataset=data,
                callbacks=[pq.huggingface_callback()]).train()

    The gradient of what the compression methods add to the loss joins the backward pass of the first batch of each optimizer
    step, with the factor 1 whatever the Trainer divides its loss by; schedules move on after the step. Each epoch's `sparsity`,
    `ebops` and `beta` are in `trainer.state.log_history`. Where the session stands is in a file of each of the Trainer's
    checkpoints, and `resume_from_checkpoint=True` goes on from it.
    model: the compiled model; by default the one among the submodules of the Trainer's model.
    Raises ExtraMissingError (PQ503) without transformers; in training TrainingError (PQ412) for a length that is no whole
    number of epochs, for fp16 (bf16 works) and for several processes.
    """
    return type("PQuantCallback", (_Hooks, package("transformers", "huggingface").TrainerCallback), {})(model)


class _Hooks:
    """The hooks, in the order in which they are called."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._session: Session | None = None
        self._hook: Any = None
        self._due = True  # the loss of this optimizer step was not added yet
        self._awaited = False  # it was, and its gradient must arrive

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, train_dataloader: Any, **kwargs: Any) -> None:
        steps = max(1, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        _refuse(args, state, steps)
        compiled = compiled_inside(model, self._model)
        self._session = session_inside(model, compiled, int(state.num_train_epochs), steps, the_optimizer(optimizer))
        if state.global_step:
            self._session.load_state_dict(_read(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE))
        self._session.__enter__()
        self._due, self._awaited = True, False
        assert isinstance(compiled, nn.Module)
        self._hook = compiled.register_forward_hook(self._join)

    def _join(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Let the gradient of the extra loss come with that of the output."""
        if not self._due or not module.training or not torch.is_grad_enabled():
            return output
        flat, spec = tree_flatten(output)
        at = next((n for n, t in enumerate(flat) if isinstance(t, Tensor) and t.requires_grad), None)
        extra = self._running.extra_loss()
        self._due = False
        if extra is None or at is None:
            return output
        self._awaited = True
        flat[at] = _Joined.apply(flat[at], extra, self)  # type: ignore[no-untyped-call]
        return tree_unflatten(flat, spec)

    def arrived(self) -> None:
        """The gradient of the extra loss was asked for."""
        self._awaited = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._awaited:
            remedy = "let the loss depend on the first output of the compiled model"
            raise TrainingError(Problem("PQ412", "the gradient of what the compression adds to the loss did not arrive", remedy))
        self._running.step()
        self._due = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history.append({**self._running.epoch_end(), "epoch": state.epoch, "step": state.global_step})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        buffer = io.BytesIO()
        torch.save(self._running.state_dict(), buffer)
        write_atomically(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE, buffer.getvalue())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hook.remove()
        self._running.__exit__(None, None, None)

    @property
    def _running(self) -> Session:
        assert self._session is not None
        return self._session


class _Joined(torch.autograd.Function):
    """x as it is; backward gives the extra loss the gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extra: Tensor, hooks: _Hooks) -> Tensor:
        ctx.hooks = hooks
        ctx.save_for_backward(torch.ones_like(extra))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.hooks.arrived()
        return gradients[0], ctx.saved_tensors[0], None


def _refuse(args: Any, state: Any, steps: int) -> None:
    problems = []
    if state.max_steps != int(state.num_train_epochs) * steps:
        what = f"{state.max_steps} steps are no whole number of epochs of {steps} steps"
        problems.append(Problem("PQ412", what, "give TrainingArguments a whole num_train_epochs, and no max_steps"))
    if args.fp16:
        problems.append(
            Problem("PQ412", "fp16 scales the gradients, which the extra loss does not know", "train with bf16=True, or in float32")
        )
    if args.world_size > 1:
        problems.append(
            Problem("PQ412", "this callback drives one process", "use pq.session in a loop of your own, or pq.lightning_callback")
        )
    if problems:
        raise TrainingError(problems)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parts of torch.load raise
        remedy = "resume from a checkpoint in output_dir that was written with this callback"
        raise TransferError(Problem("PQ510", f"'{path}' can not be read: {error}", remedy)) from error
