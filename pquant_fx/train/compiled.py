"""What training needs of a compiled model, and how it is found inside the wrappers of torch."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.fx import GraphModule

from pquant_fx.config import Config
from pquant_fx.errors import Problem, TrainingError
from pquant_fx.estimate import Ebops, EbopsPlan

__all__ = ["Compiled", "compiled_model"]


@runtime_checkable
class Compiled(Protocol):
    """What training needs of a compiled model."""

    @property
    def graph_module(self) -> GraphModule: ...

    @property
    def config(self) -> Config: ...

    def ebops(self) -> Ebops: ...

    def ebops_plan(self) -> EbopsPlan: ...


def compiled_model(model: Any) -> Compiled:
    """The compiled model behind the wrappers of DistributedDataParallel and torch.compile. Raises TrainingError (PQ412)."""
    found = model
    while not isinstance(found, Compiled):
        inner = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            what = f"a {type(model).__name__} is no compiled model"
            raise TrainingError(Problem("PQ412", what, "pass what pq.compile(...) returned"))
        found = inner
    return found
