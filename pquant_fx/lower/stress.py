"""Samples that real data seldom holds: ties and their neighbours, single lsbs, saturating and wrapping values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.moves import embed

__all__ = ["input_formats", "stress_samples", "varied"]

Array = npt.NDArray[np.float64]
Bits = tuple[int, int, int]
KINDS = 8


def input_formats(gm: GraphModule) -> list[Bits | None]:
    """(k, i, f) of each input, as the widest quantizer that reads it has them; (1, 3, 6) where none does directly. None for row
    numbers of a table: what is no row has no meaning.
    """
    found: list[Bits | None] = []
    rows = _row_numbers(gm)
    for node in gm.graph.nodes:
        if node.op == "placeholder" and node in rows:
            found.append(None)
        elif node.op == "placeholder":
            readers = [m for user in node.users if isinstance(m := module_of(gm, user), Quantizer) and m.calibrated]
            k, i, f = (max(int(q.kif()[n].max()) for q in readers) for n in range(3)) if readers else (1, 3, 6)
            found.append((k, i, f))
    return found


def _row_numbers(gm: GraphModule) -> set[Node]:
    """Everything that the row numbers of an embedding are made of."""
    found: set[Node] = set()
    waiting = [node.args[0] for node in gm.graph.nodes if node.target is embed]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def stress_samples(inputs: Sequence[Tensor], formats: Sequence[Bits | None], count: int, seed: int = 0) -> list[Tensor]:
    """`count` samples for each input, made of real ones: each sample is of one of eight kinds, the same for all inputs.

    Ties of the input's grid; what lies right above or below a tie; real values a little and far beyond the range; one lsb around
    the largest code; only extremes; nothing but single lsbs; a mixture of all of them. Where the format is None, real samples.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, max(len(inputs[0]), 1), count) if len(inputs) else np.zeros(count, dtype=np.int64)
    made = []
    for x, bits in zip(inputs, formats):
        if bits is None:
            made.append(x.detach().cpu()[torch.from_numpy(rows)])
            continue
        real = x.detach().cpu().double().numpy()[rows]
        values = [varied(real[n], bits, n % KINDS, rng) for n in range(count)]
        made.append(torch.from_numpy(np.array(values, dtype=np.float32).reshape(real.shape)))
    return made


def varied(x: Array, bits: Bits, kind: int, rng: np.random.Generator) -> Array:
    """One sample of a kind (see `stress_samples`), exactly representable in float32."""
    k, i, f = bits
    lsb, high = 2.0**-f, 2.0**i
    if kind == KINDS - 1:
        every = np.stack([varied(x, bits, other, rng) for other in range(KINDS - 1)])
        chosen = rng.integers(0, KINDS - 1, x.shape)
        return np.asarray(np.take_along_axis(every, chosen[None], 0)[0])
    tie = (np.floor(x / lsb) + 0.5) * lsb
    if kind == 0:
        made = tie
    elif kind == 1:
        away = np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        made = np.nextafter(tie.astype(np.float32), away)
    elif kind == 2:
        made = x * 4
    elif kind == 3:
        made = np.clip(x * 64, -4 * high, 4 * high)
    elif kind == 4:
        made = rng.choice([-k * high, high, high - lsb], x.shape) + rng.integers(-1, 2, x.shape) * lsb
    elif kind == 5:
        made = rng.choice([-k * high, high - lsb], x.shape)
    else:
        made = rng.integers(-2, 3, x.shape) * lsb / 2
    return np.asarray(made).astype(np.float32).astype(np.float64)
