"""The loss and the metric that fit takes when the user names none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant_fx.errors import Problem, TrainingError

__all__ = ["Loss", "Metric", "accuracy", "default_loss", "default_metrics", "is_classification"]

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]


def default_loss(output: Any, target: Any) -> Tensor:
    """Cross entropy over axis 1 for integer targets, else mean squared error; mean over the batch.

    Raises TrainingError: PQ412 when output or target is no tensor, PQ410 when their shapes do not belong together
    (torch would broadcast (N,) against (N, 1) to N x N and train on nonsense) or a class number has no output.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        found = f"output is a {type(output).__name__}, the target a {type(target).__name__}"
        remedy = "pass loss=fn(output, target), a function that returns a 0-d tensor"
        raise TrainingError(Problem("PQ412", f"there is no default loss: the {found}", remedy))
    if target.dtype == torch.bool:
        remedy = "pass loss=torch.nn.functional.binary_cross_entropy_with_logits and float targets, or integer class numbers"
        raise TrainingError(Problem("PQ410", "there is no default loss for bool targets", remedy))
    if target.is_floating_point():
        if target.shape != output.shape:
            remedy = "give targets of the output's shape, or class numbers as integers, or pass loss="
            raise TrainingError(Problem("PQ410", _shapes(output, target), remedy))
        return F.mse_loss(output, target)
    if not is_classification(output, target):
        raise TrainingError(Problem("PQ410", _shapes(output, target), "give one class number a sample (shape (N,)), or pass loss="))
    try:
        return F.cross_entropy(output, target.long())
    except IndexError:  # on the CPU; a GPU reports it in its own way, and looking first would make every step wait for it
        what = f"the class numbers go from {int(target.min())} to {int(target.max())}, the model has {output.shape[1]} outputs"
        remedy = f"number the classes 0 to {output.shape[1] - 1}, or give the last layer one output a class"
        raise TrainingError(Problem("PQ410", what, remedy)) from None


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest output is at their class number, a 0-d tensor in [0, 1]."""
    return (output.argmax(1) == target).double().mean()


def is_classification(output: Any, target: Any) -> bool:
    """Whether `target` holds one class number for each score vector along axis 1 of `output`."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.dim() < 2:
        return False
    whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    return whole and target.shape == output.shape[:1] + output.shape[2:]


def default_metrics(output: Any, target: Any) -> Mapping[str, Metric]:
    """Accuracy for class numbers, nothing otherwise."""
    return {"accuracy": accuracy} if is_classification(output, target) else {}


def _shapes(output: Tensor, target: Tensor) -> str:
    return f"targets of type {target.dtype} and shape {tuple(target.shape)} do not belong to outputs of shape {tuple(output.shape)}"
