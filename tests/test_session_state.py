"""What a session keeps of its listeners: each has a state of its own, also where two are of one class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from pquant_fx.errors import TrainingError
from pquant_fx.train.events import Event, StepEnd
from pquant_fx.train.plan import Plan
from pquant_fx.train.session import Session


class Counting:
    """Counts steps in strides of its own."""

    def __init__(self, stride: int) -> None:
        self.stride, self.count = stride, 0

    def __call__(self, event: Event) -> None:
        self.count += self.stride * isinstance(event, StepEnd)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class Bare(nn.Module):
    graph_module = torch.fx.symbolic_trace(nn.Linear(2, 2))
    config = None


def made(*strides: int) -> tuple[Session, list[Counting]]:
    listeners = [Counting(n) for n in strides]
    return Session(Bare(), Plan(0, 2, 0, 3), listeners=listeners), listeners  # type: ignore[arg-type]


def test_listeners_of_one_class_keep_states_of_their_own():
    session, listeners = made(1, 10, 100)
    session.step()
    session.step()
    state = session.state_dict()
    assert state["listeners"] == {"Counting": {"count": 2}, "Counting 2": {"count": 20}, "Counting 3": {"count": 200}}
    again, found = made(1, 10, 100)
    again.load_state_dict(state)
    for s in (session, again):
        s.step()
    assert [x.count for x in found] == [x.count for x in listeners] == [3, 30, 300]


def test_a_state_with_fewer_of_them_is_refused():
    with pytest.raises(TrainingError, match="another configuration"):
        made(1, 10)[0].load_state_dict(made(1)[0].state_dict())
