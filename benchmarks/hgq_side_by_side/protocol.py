"""What every runner shares: the task, the one counter of EBOPs, and the lines that come in and go out. NumPy only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIDDEN = (64, 32, 32)
BATCH = 512
PEAK_RATE = 4e-3
MEASURED = ("accuracy", "ebops", "own_ebops", "wall_s", "cpu_s")
"""What a run answers; all else in its line was asked for."""

Array = NDArray[Any]


class Task:
    """One data set, standardised by its training part: float32 (rows, 16) and int labels."""

    def __init__(self, folder: str, name: str) -> None:
        data = np.load(Path(folder) / f"{name}.npz")
        x, x_test = (data[k].astype(np.float64) for k in ("x_train", "x_test"))
        mean, std = x.mean(0), x.std(0)
        self.x, self.x_test = (((a - mean) / std).astype(np.float32) for a in (x, x_test))
        self.y, self.y_test = (data[k].astype(np.int64) for k in ("y_train", "y_test"))
        self.classes = int(self.y.max()) + 1

    def accuracy(self, logits: Array) -> float:
        """Share of the test set that `logits` (rows, classes) name rightly."""
        return float((logits.argmax(1) == self.y_test).mean())


def enclosed_bits(weights: Array) -> Array:
    """msb - lsb + 1 of each weight's code, whatever its scale; 0 for a zero weight (what a constant multiplier costs)."""
    scaled = np.abs(np.asarray(weights, np.float64)) * 2.0**40
    codes = scaled.astype(np.int64)
    if not (codes == scaled).all():
        raise ValueError("a weight has digits below 2^-40: it is not on a fixed-point grid")
    lowest = codes & -codes
    return np.where(codes > 0, np.frexp(codes.astype(np.float64))[1] - np.frexp(lowest.astype(np.float64))[1] + 1, 0)


def ebops(layers: Iterable[tuple[Array, Array]]) -> int:
    """Sum over nonzero weights of enclosed_bits(w) x stored bits of its input element.

    layers: (weights (outputs, inputs), k + i + f of each input element (inputs,)) of every dense layer.
    """
    return int(sum(float((enclosed_bits(w) * np.maximum(bits, 0)).sum()) for w, bits in layers))


def stored_bits(k: Array, i: Array, f: Array, elements: int) -> Array:
    """k + i + f an element (elements,), 0 where no magnitude bit is left."""
    b = np.rint(i) + np.rint(f)
    return np.broadcast_to(np.where(b > 0, b + k, 0).reshape(-1), (elements,)) if np.ndim(b) else np.full(elements, max(b + k, 0))


def serve(train: Callable[[Task, dict[str, Any]], dict[str, Any]], task: Callable[[str, str], Task] = Task) -> None:
    """Run every specification (one JSON object a line on stdin) and answer with one line each; argv[1] is the data folder.

    A specification has dataset, seed and the runner's own keys; `task` makes the data set of that name, `train` returns what was
    measured.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tool prints goes to stderr
    for line in sys.stdin:
        spec = json.loads(line)
        start, used = time.perf_counter(), time.process_time()
        result = train(task(sys.argv[1], spec["dataset"]), spec)
        took = {"wall_s": round(time.perf_counter() - start, 2), "cpu_s": round(time.process_time() - used, 2)}
        answers.write(json.dumps({**spec, **result, **took}) + "\n")
        answers.flush()
