"""Which trainings make the comparison. A method that has a goal is asked for it; one that has none is swept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

TASKS = {"pendigits": {"batch": 512, "rate": 4e-3}, "digits": {"batch": 64, "rate": 2e-3}}
GOALS = (0.5, 0.8, 0.9, 0.95)
SEEDS = range(3)
EPOCHS = {"pretraining_epochs": 10, "epochs": 40, "fine_tuning_epochs": 10}
_GOAL = tuple({"sparsity": goal} for goal in GOALS)

METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    # the shipped temperature, and one that lets weights near the threshold choose; the report takes the better at equal sparsity
    "pdp": (
        *({**goal, "epsilon": 1.5 / EPOCHS["epochs"]} for goal in _GOAL),
        *({**goal, "epsilon": 0.2, "temperature": 1e-2} for goal in _GOAL),
    ),
    "wanda": _GOAL,
    "mdmm": tuple({"target_sparsity": goal} for goal in GOALS),
    "dst": tuple({"alpha": alpha, "threshold_type": "weightwise"} for alpha in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "autosparse": tuple({"threshold_init": t} for t in (-1.0, -0.5, -0.4, -0.3, -0.2)),
    "cs": tuple({"threshold_decay": 1e-5, "threshold_init": logit} for logit in (0.0, -0.03, -0.1, -0.2, -0.4)),
    "activation_pruning": tuple({"threshold": threshold} for threshold in (0.2, 0.4, 0.5, 0.6, 0.8)),
    "magnitude": _GOAL,
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    # counters of batches: pquant-ml 0.1.0 counts epochs with them, and reads N and M only where they are null
    "pquant_ml": {
        "wanda": {"t_start_collecting_batch": 5, "t_delta": 5, "N": None, "M": None},
        "activation_pruning": {"t_start_collecting_batch": 5, "t_delta": 10},
    },
    "ours": {
        "wanda": {"t_start_collecting_batch": 75, "t_delta": 75},
        "activation_pruning": {"t_start_collecting_batch": 75, "t_delta": 75},
    },
}


def plan(tool: str) -> Iterator[dict[str, Any]]:
    """One specification (a JSON object) for each training of one tool."""
    for (name, given), (method, sweep) in product(TASKS.items(), METHODS.items()):
        if method == "magnitude" and tool != "ours":
            continue
        own = OWN[tool].get(method, {})
        for settings, seed in product(sweep, SEEDS):
            yield {"tool": tool, "dataset": name, **given, "method": method, "settings": {**settings, **own}, "seed": seed}
