"""What a pass decided from data: recorded with the graph, and replayed when a checkpoint compiles the network again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule

__all__ = ["decide", "decisions_of", "replay"]

_KEY = "pquant_fx.decisions"


def decide(gm: GraphModule, name: str, take: Callable[[], Any]) -> Any:
    """The decision that is recorded as `name`; where there is none, what `take` returns, which is recorded.

    A pass whose edits depend on values (of weights, of data) takes each decision through this door, so that a network that is
    compiled again for its checkpoint becomes the same one. Decisions are plain data: numbers, text, lists and dicts of them.
    """
    known: dict[str, Any] = gm.meta.setdefault(_KEY, {})
    if name not in known:
        known[name] = take()
    return known[name]


def decisions_of(gm: GraphModule) -> dict[str, Any]:
    """All decisions that were taken, or replayed."""
    return dict(gm.meta.get(_KEY, {}))


def replay(gm: GraphModule, decisions: Mapping[str, Any]) -> None:
    """Let passes that run on `gm` from now on take these decisions."""
    gm.meta[_KEY] = dict(decisions)
