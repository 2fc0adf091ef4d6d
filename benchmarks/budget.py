"""Training to a budget of EBOPs against training with constant betas: the MLP 16-64-32-32-10 on a table such as pendigits.

    python -m benchmarks.budget --data pendigits.npz [--epochs 250] [--seeds 5] [--jobs 2] [--json budget.json]

data: x_train, y_train, x_test, y_test as .npz; inputs are standardised. Each budget should end at most 5 % under its limit,
and at most 0.3 points of accuracy under what constant betas reach with as many EBOPs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pquant_fx as pq

BUDGETS = (2_000, 5_000, 10_000, 20_000)
BETAS = (1e-7, 3e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5)
BATCH, RATE = 512, 4e-3


@dataclass(frozen=True)
class Job:
    """One training: a budget, or a constant beta."""

    seed: int
    budget: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Result:
    """accuracy of the frozen network on the test set, its exact EBOPs, seconds of training, and warnings."""

    job: Job
    accuracy: float
    ebops: float
    seconds: float
    warned: tuple[str, ...] = ()

    def as_line(self) -> dict[str, object]:
        return {**asdict(self.job), "accuracy": self.accuracy, "ebops": self.ebops, "seconds": self.seconds, "warned": self.warned}


def table(path: Path) -> dict[str, Tensor]:
    """The standardised table: x float32 (N, F), y class numbers."""
    data = np.load(path)
    mean, std = data["x_train"].mean(0), data["x_train"].std(0) + 1e-9
    x = {part: torch.from_numpy((data[f"x_{part}"] - mean) / std).float() for part in ("train", "test")}
    y = {part: torch.from_numpy(data[f"y_{part}"]).long() for part in ("train", "test")}
    return {"x": x["train"], "y": y["train"], "x_test": x["test"], "y_test": y["test"]}


def network(inputs: int, classes: int) -> nn.Module:
    sizes = (inputs, 64, 32, 32)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def run(path: Path, epochs: int, job: Job) -> Result:
    """Train once and count the frozen network."""
    torch.set_num_threads(1)
    data = table(path)
    torch.manual_seed(job.seed)
    net = network(data["x"].shape[1], int(data["y"].max()) + 1)
    training = {"epochs": epochs, "pretraining_epochs": 0, "batch_size": BATCH, "learning_rate": RATE}
    if job.budget is None:
        settings = {"preset": "hgq", "training_parameters": training, "quantization_parameters": {"hgq_beta": job.beta}}
    else:
        settings = {"preset": "hgq_budget", "training_parameters": training, "budget": {"ebops": job.budget}}
    model = pq.compile(net, settings, data["x"][:BATCH])
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit((data["x"], data["y"]))
    seconds = time.perf_counter() - start
    frozen = model.freeze()
    accuracy = float((frozen(data["x_test"]).argmax(1) == data["y_test"]).double().mean())
    return Result(job, accuracy, frozen.ebops().total, seconds, tuple(str(w.message) for w in caught))


def front(results: list[Result], betas: tuple[float, ...]) -> list[tuple[float, float]]:
    """Mean EBOPs and mean accuracy of each constant beta, in the order of EBOPs."""
    points = []
    for beta in betas:
        mine = [r for r in results if r.job.beta == beta]
        points += [(statistics.mean(r.ebops for r in mine), statistics.mean(r.accuracy for r in mine))] if mine else []
    return sorted(points)


def at(points: list[tuple[float, float]], ebops: float) -> float:
    """Accuracy of the front at `ebops`, linear in log(EBOPs)."""
    x, y = zip(*points)
    return float(np.interp(np.log(ebops), np.log(x), y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    parser.add_argument("--betas", type=float, nargs="*", default=BETAS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = [Job(seed, budget=n) for n in args.budgets for seed in range(args.seeds)]
    jobs += [Job(seed, beta=beta) for beta in args.betas for seed in range(args.seeds)]
    results = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(partial(run, args.data, args.epochs), jobs):
            results.append(result)
            print(json.dumps(result.as_line()), flush=True)
    if args.json is not None:
        args.json.write_text("\n".join(json.dumps(r.as_line()) for r in results) + "\n")
    show(results, tuple(args.budgets), front(results, tuple(args.betas)))


def show(results: list[Result], budgets: tuple[float, ...], points: list[tuple[float, float]]) -> None:
    print("constant betas:", "  ".join(f"{e:,.0f} EBOPs {a:.4f}" for e, a in points))
    print(f"{'budget':>8} {'EBOPs / budget':40} {'in 5 %':>7} {'accuracy':>9} {'front':>7} {'s':>6}")
    for budget in budgets:
        mine = [r for r in results if r.job.budget == budget]
        shares = [r.ebops / budget for r in mine]
        held = sum(0.95 <= share <= 1 for share in shares)
        accuracy = statistics.mean(r.accuracy for r in mine)
        reached = at(points, statistics.mean(r.ebops for r in mine)) if points else float("nan")
        seconds = statistics.mean(r.seconds for r in mine)
        shown = " ".join(f"{share:.3f}" for share in shares)
        print(f"{budget:8,.0f} {shown:40} {held:3}/{len(mine):<3} {accuracy:9.4f} {reached:7.4f} {seconds:6.1f}")
        for text in sorted({text for r in mine for text in r.warned}):
            print(f"         {text}")


if __name__ == "__main__":
    main()
