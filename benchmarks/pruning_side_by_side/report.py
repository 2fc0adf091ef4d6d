"""Accuracy of each tool and method at equal sparsity: mean over seeds, linear between the settings that are worth choosing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.pruning_side_by_side.plan import GOALS, METHODS

Curve = list[tuple[float, float]]


def curves(runs: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], Curve]:
    """(data set, method, tool) -> (mean sparsity, mean accuracy) of the best settings, by rising sparsity."""
    groups: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in (r for r in runs if "error" not in r):
        groups[run["dataset"], run["method"], run["tool"]][json.dumps(run["settings"], sort_keys=True)].append(run)
    return {key: _best((_mean(rows, "sparsity"), _mean(rows, "accuracy")) for rows in found.values()) for key, found in groups.items()}


def _best(points: Iterable[tuple[float, float]], near: float = 0.002) -> Curve:
    """The settings that are worth choosing, by rising sparsity: no other one that ends at as many zeros (up to `near`) or more is
    more accurate.
    """
    merged: Curve = []
    for point in sorted(points):
        if merged and point[0] - merged[-1][0] < near:
            merged[-1] = max(merged[-1], point, key=lambda p: p[1])
        else:
            merged.append(point)
    curve: Curve = []
    for point in reversed(merged):
        if not curve or point[1] > curve[-1][1]:
            curve.append(point)
    return curve[::-1]


def _mean(rows: list[dict[str, Any]], what: str) -> float:
    return float(np.mean([row[what] for row in rows]))


def at(curve: Curve, sparsity: float, tolerance: float = 0.01) -> float:
    """Accuracy at `sparsity` or above; nan where that was not reached, by more than the tolerance."""
    if not curve or sparsity > curve[-1][0] + tolerance:
        return float("nan")
    return float(np.interp(sparsity, *zip(*curve)))


def report(runs: list[dict[str, Any]]) -> None:
    found = curves(runs)
    for dataset in sorted({run["dataset"] for run in runs}):
        print(f"\n{dataset}: accuracy (%) from" + "".join(f"{100 * goal:>8.0f} %" for goal in GOALS) + "   sparsity of the best settings")
        for method in METHODS:
            for error in sorted({r["error"] for r in runs if (r["dataset"], r["method"]) == (dataset, method) and "error" in r}):
                print(f"  {method:20s}pquant_ml  does not run: {error.splitlines()[0]}")
            for tool in ("ours", "pquant_ml"):
                curve = found.get((dataset, method, tool), [])
                if curve:
                    reached = " ".join(f"{s:.3f}" for s, _ in curve)
                    print(f"  {method:20s}{tool:10s}" + "".join(f"{100 * at(curve, goal):10.2f}" for goal in GOALS) + f"   {reached}")
