"""What a training step costs: float, ours, and the peers that are installed, side by side in one process.

    python -m benchmarks.training_step [--rounds 40] [--threads 1]

A step is zero_grad, forward, cross entropy, backward, Adam; every contestant has the same optimizer (fused Adam) and data.
Contestants take turns, so that a busy machine slows all of them; the ratio of a row is the median over rounds of its time
against the float step of the same round. Workloads: an MLP 16-64-32-32-5 at batch 1024 and 33200, a ResNet-8 at batch 64.

Peers are measured where they can be imported: `pip install brevitas pquant-ml==0.1.0` into this environment.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from benchmarks.networks import ResNet
from benchmarks.step_peers import PEERS

STATIC = {
    "preset": "fixed8",
    "quantization_parameters": {
        "default_data_integer_bits": 1,
        "default_data_fractional_bits": 6,
        "default_weight_integer_bits": 1,
        "default_weight_fractional_bits": 6,
    },
    "layers": {"ReLU": {"data_format": "ufixed<8,2>"}},
}
DST = {
    "pruning_parameters": {"pruning_method": "dst", "alpha": 1e-4},
    "training_parameters": {"pretraining_epochs": 0, "fine_tuning_epochs": 0},
}
OURS: dict[str, object] = {
    "ours, static 8 bits": STATIC,
    "ours, static 8 bits, DST": STATIC | DST,
    "ours, fixed8": "fixed8",
    "ours, hgq": "hgq",
}
Step = Callable[[], None]


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((16, 64), (64, 32), (32, 32)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


def workloads() -> Iterator[tuple[str, Callable[[], nn.Module], Tensor, Tensor]]:
    for batch in (1024, 33200):
        yield f"MLP 16-64-32-32-5, batch {batch}", mlp, torch.randn(batch, 16), torch.randint(0, 5, (batch,))
    yield "ResNet-8, batch 64", lambda: ResNet(1), torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))


def stepper(model: nn.Module, x: Tensor, y: Tensor, extra: Callable[[], Tensor] | None = None, after: Step | None = None) -> Step:
    """One training step as a function without arguments."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
        if after is not None:
            after()

    return step


def ours(make: Callable[[], nn.Module], config: object, x: Tensor, y: Tensor) -> Step:
    model = pq.compile(make(), config, x[:256])  # type: ignore[arg-type]
    model.calibrate([x])
    session = pq.session(model, epochs=10**6, steps_per_epoch=10**6)
    adds = session.extra_loss() is not None
    return stepper(model, x, y, session.loss if adds else None, session.step)


def contestants(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Step]:
    made = {"float": stepper(make(), x, y)}
    made |= {name: ours(make, config, x, y) for name, config in OURS.items()}
    for name, build in PEERS.items():
        try:
            model, extra = build(make(), x)
        except ImportError as error:
            print(f"{name}: not measured ({error})")
            continue
        made[name] = stepper(model, x, y, extra)
    return made


def seconds(step: Step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds a step by contestant and round; the order turns by one each round."""
    repeats = {name: max(1, int(0.03 / seconds(step, 2))) for name, step in steps.items()}  # warms up, too
    names, times = list(steps), {name: [] for name in steps}  # type: dict[str, list[float]]
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(steps[name], repeats[name]))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    for title, make, x, y in workloads():
        times = measure(contestants(make, x, y), args.rounds)
        print(f"\n{title}, {args.threads} thread(s), median of {args.rounds} rounds")
        for name, taken in times.items():
            ratios = [a / b for a, b in zip(taken, times["float"])]
            print(f"  {name:24} {1e3 * statistics.median(taken):9.2f} ms   {statistics.median(ratios):6.2f} x float")


if __name__ == "__main__":
    main()
