"""Pareto table and plot of the runs: mean accuracy of each tool at equal EBOPs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hgq_side_by_side.protocol import MEASURED

GRID = (1000, 2000, 3000, 5000, 7000, 10000)

Point = tuple[float, float]


def settings(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting (all that is equal but the seed): mean EBOPs and accuracy, spread, seconds, number of seeds."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[json.dumps({k: v for k, v in run.items() if k not in ("seed", *MEASURED)}, sort_keys=True)].append(run)
    rows = []
    for key, members in groups.items():
        means = {k: float(np.mean([m[k] for m in members])) for k in ("accuracy", "ebops", "wall_s", "cpu_s")}
        rows.append({**json.loads(key), **means, "spread": float(np.std([m["accuracy"] for m in members])), "seeds": len(members)})
    return rows


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both EBOPs and accuracy, by rising EBOPs."""
    best: list[Point] = []
    for ebops, accuracy in sorted(points):
        if not best or accuracy > best[-1][1]:
            best.append((ebops, accuracy))
    return best


def at(points: list[Point], ebops: float) -> float:
    """Accuracy of a front at `ebops`: linear in log EBOPs between neighbours, the last one's beyond its end, nan before its start."""
    if not points or ebops < points[0][0]:
        return float("nan")
    return float(np.interp(np.log(ebops), np.log([max(p[0], 1.0) for p in points]), [p[1] for p in points]))


def fronts(rows: list[dict[str, Any]], dataset: str) -> dict[str, list[Point]]:
    """Front of the mean points of every (tool, epochs), named 'tool epochs'."""
    points: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row["dataset"] == dataset:
            points[f"{row['tool']} {row['epochs']}"].append((row["ebops"], row["accuracy"]))
    return {name: front(found) for name, found in sorted(points.items())}


def report(runs: list[dict[str, Any]], plot: Path | None) -> None:
    """Print, for each data set, each setting and the accuracy at equal EBOPs; ours minus the better peer at equal epochs."""
    rows = settings(runs)
    datasets = sorted({row["dataset"] for row in rows})
    for dataset in datasets:
        print(f"\n{dataset}: settings (mean over seeds)")
        for row in sorted((r for r in rows if r["dataset"] == dataset), key=lambda r: (r["tool"], r["epochs"], r["ebops"])):
            known = ("tool", "epochs", "dataset", "beta", "ebops", "accuracy", "spread", "seeds", "wall_s", "cpu_s")
            rest = " ".join(f"{k}={v}" for k, v in row.items() if k not in known)
            print(
                f"  {row['tool']:9s} {row['epochs']:5d} beta {row.get('beta', 0):.0e} {row['ebops']:8.0f} EBOPs "
                f"{100 * row['accuracy']:6.2f} ± {100 * row['spread']:.2f} % ({row['seeds']} seeds, {row['wall_s']:.0f} s) {rest}"
            )
        _table(fronts(rows, dataset))
    if plot:
        draw({dataset: fronts(rows, dataset) for dataset in datasets}, plot)


def _table(found: dict[str, list[Point]]) -> None:
    print("  accuracy (%) at equal EBOPs" + "".join(f"{grid:>9d}" for grid in GRID))
    for name, points in found.items():
        print(f"  {name:27s}" + "".join(f"{100 * at(points, grid):9.2f}" for grid in GRID))
    for name in (n for n in found if n.startswith("ours")):
        epochs = name.split()[1]
        peers = [points for other, points in found.items() if other.endswith(f" {epochs}") and not other.startswith("ours")]
        if peers:
            less = [100 * (at(found[name], grid) - np.nanmax([at(p, grid) for p in peers] + [0.0])) for grid in GRID]
            print(f"  {name + ' - better peer':27s}" + "".join(f"{v:+9.2f}" for v in less))


def draw(found: dict[str, dict[str, list[Point]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(6 * len(found), 4.5), squeeze=False)
    for axis, (dataset, curves) in zip(axes[0], found.items()):
        for name, points in curves.items():
            axis.plot([p[0] for p in points], [100 * p[1] for p in points], "o-", label=f"{name} epochs")
        axis.set(xscale="log", xlabel="EBOPs (enclosed bits of weights x stored bits of data)", ylabel="test accuracy (%)", title=dataset)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
