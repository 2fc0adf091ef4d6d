"""Which trainings make the comparison: one specification (a JSON object) for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

DATASETS = ("pendigits", "dry_bean")
SEEDS = range(5)
EQUAL_EPOCHS = 250

Recipe = Mapping[str, Any]
BETAS: dict[str, tuple[float, ...]] = {
    "ours": (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 2e-4),
    "hgq2": (3e-6, 1e-5, 3e-5, 1e-4, 2e-4, 4e-4),
    "pquant_ml": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
}
RECIPES: dict[str, tuple[Recipe, ...]] = {
    "ours": ({},),  # the preset as it is
    # the two best of the starts tried (the library's own b0 = 8, i0 = 2 ends five points lower at equal beta)
    "hgq2": (
        {"b0": 6, "i0": 0, "data_i0": 2, "data_f0": 6, "data_overflow": "WRAP"},
        {"b0": 4, "i0": 0, "data_i0": 2, "data_f0": 6, "data_overflow": "WRAP"},
    ),
    "pquant_ml": ({"i0": 0.0, "f0": 6.0, "data_i0": 2.0, "data_f0": 6.0, "data_overflow": "WRAP"},),
}
RAMPS = ({"beta_start": 1e-5, "beta": 1e-4, "ramp": 0.5}, {"beta_start": 1e-6, "beta": 4e-4, "ramp": 0.8})
LONG: dict[str, tuple[int, tuple[Recipe, ...]]] = {
    "hgq2": (1500, ({"beta": 2e-5}, {"beta": 5e-5}, {"beta": 1e-4})),
    "ours": (375, ({"beta": 1e-5}, {"beta": 3e-5}, {"beta": 1e-4})),
}
"""Longer trainings: those of `ours` take the seconds that HGQ2's 1,500 epochs take on the same core."""


def plan(tool: str) -> Iterator[dict[str, Any]]:
    """The specifications of one tool, the most telling first."""
    best, *others = RECIPES[tool]
    yield from _sweep(tool, EQUAL_EPOCHS, best, [{"beta": beta} for beta in BETAS[tool]])
    if tool in LONG:
        epochs, schedules = LONG[tool]
        yield from _sweep(tool, epochs, best, schedules)
    for recipe in others:
        yield from _sweep(tool, EQUAL_EPOCHS, recipe, [{"beta": beta} for beta in BETAS[tool]])
    if tool == "hgq2":
        yield from _sweep(tool, EQUAL_EPOCHS, best, RAMPS)


def _sweep(tool: str, epochs: int, recipe: Recipe, schedules: Sequence[Recipe]) -> Iterator[dict[str, Any]]:
    for dataset, schedule, seed in product(DATASETS, schedules, SEEDS):
        yield {"tool": tool, "dataset": dataset, "epochs": epochs, "seed": seed, **recipe, **schedule}
