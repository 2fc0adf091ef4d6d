"""Does each metric of MDMM reach its target pattern from a dense start, on real data?

    python -m benchmarks.mdmm_feasibility --data pendigits.npz [--seeds 3] [--only paca 2:4]

Two networks: the MLP 16-64-32-32-10 on a table (x_train, y_train, x_test, y_test as .npz), and a small CNN on the 8x8 digits of
scikit-learn, for PACA and N:M of kernels. Printed: the largest g of any layer when training ends, before the mask is fixed
(feasible: at most 1e-2, the share of the magnitude that lies outside the pattern); the sparsity; the accuracy of the float
network trained as long, and of the quantized one when its mask has just been fixed and after fine-tuning.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pquant_fx as pq
from benchmarks.budget import network, table
from pquant_fx.demo_network import load_digits
from pquant_fx.prune import MDMMMask

EPOCHS, FINE_TUNING, FEASIBLE = 30, 10, 1e-2
LAST_MLP, LAST_CNN = ["6"], ["8"]


@dataclass(frozen=True)
class Job:
    """One metric on one of the networks (`mlp`, `cnn`)."""

    name: str
    network: str
    pruning: dict[str, Any] = field(default_factory=dict)


def fpga(resource: str, sparsity: float, **more: Any) -> dict[str, Any]:
    asked = {"metric_type": "FPGAAwareSparsity", "target_resource": resource, "target_sparsity": sparsity}
    return {**asked, "rf": 4, "precision": 18, **more}


def structured(sparsity: float, last: list[str], **more: Any) -> dict[str, Any]:
    return {"metric_type": "StructuredSparsity", "target_sparsity": sparsity, "disable_pruning_for_layers": last, **more}


def paca(distance: str, **more: Any) -> dict[str, Any]:
    asked = {"metric_type": "PACAPatternSparsity", "target_sparsity": 0.55, "distance_metric": distance}
    return {**asked, "disable_pruning_for_layers": ["Linear"], **more}


JOBS = (
    Job("unstructured 80 %", "mlp", {"target_sparsity": 0.8}),
    Job("unstructured 90 %", "mlp", {"target_sparsity": 0.9}),
    Job("unstructured 95 %", "mlp", {"target_sparsity": 0.95}),
    Job("unstructured 95 %, global", "mlp", {"target_sparsity": 0.95, "scope": "global"}),
    Job("outputs 50 %", "mlp", structured(0.5, LAST_MLP)),
    Job("outputs 50 %", "cnn", structured(0.5, LAST_CNN)),
    Job("blocks of 4, 75 %", "mlp", structured(0.75, [], rf=4)),
    Job("2:4", "mlp", {"metric_type": "NMSparsity", "nm": "2:4"}),
    Job("1:4", "mlp", {"metric_type": "NMSparsity", "nm": "1:4"}),
    Job("1:4", "cnn", {"metric_type": "NMSparsity", "nm": "1:4"}),
    Job("paca, valued", "cnn", paca("valued_hamming")),
    Job("paca, hamming, 4 patterns", "cnn", paca("hamming", num_patterns_to_keep=4)),
    Job("paca, cosine", "cnn", paca("cosine")),
    Job("dsp 75 %", "mlp", fpga("DSP", 0.75)),
    Job("bram 75 %", "mlp", fpga("BRAM", 0.75)),
    Job("dsp+bram 75 %, global", "mlp", fpga("DSP+BRAM", 0.75, scope="global")),
    Job("unstructured 90 %, <= 1e-3", "mlp", {"constraint_type": "LessThanOrEqual", "target_value": 1e-3}),
    Job("unstructured 90 %, count", "mlp", {"measure": "count"}),
    Job("unstructured 90 %, smooth", "mlp", {"l0_mode": "smooth"}),
)


def digits() -> dict[str, Tensor]:
    """8x8 digits, 0 to 1."""
    found = load_digits()
    return {"x": found.x, "y": found.y, "x_test": found.x_test, "y_test": found.y_test}


def cnn() -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def trained(data: dict[str, Tensor], kind: str, seed: int, settings: dict[str, Any]) -> tuple[nn.Module, list[float]]:
    """The network after training, and its accuracy on the test set after each epoch; a fixed mask counts from its epoch on."""
    torch.manual_seed(seed)
    net = network(16, 10) if kind == "mlp" else cnn()
    stages = {"pretraining_epochs": 0, "epochs": EPOCHS, "fine_tuning_epochs": FINE_TUNING, "batch_size": 128, "learning_rate": 5e-3}
    model = pq.compile(net, {**settings, "training_parameters": stages}, data["x"][:128])
    seen: list[float] = []

    def look(_: Any) -> None:
        model.eval()
        with torch.no_grad():
            seen.append(float((model(data["x_test"]).argmax(1) == data["y_test"]).double().mean()))
        model.train()

    model.fit((data["x"], data["y"]), callbacks=[look])
    return model, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the metrics' names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {"mlp": table(args.data), "cnn": digits()}
    dense: dict[str, float] = {}
    print(f"{'metric':28} {'net':4} {'largest g':>10} {'sparsity':>9} {'dense':>7} {'fixed':>7} {'tuned':>7} {'s':>5}")
    for job in (job for job in JOBS if any(part in job.name for part in args.only)):
        kind = job.network
        if kind not in dense:
            runs = [trained(data[kind], kind, seed, {"preset": "float"})[1][-1] for seed in range(args.seeds)]
            dense[kind] = statistics.mean(runs)
        start = time.perf_counter()
        rows = []
        for seed in range(args.seeds):
            model, seen = trained(data[kind], kind, seed, {"preset": "mdmm", "pruning_parameters": job.pruning})
            masks = [m for m in model.modules() if isinstance(m, MDMMMask)]
            removed = 1 - sum(float(m.mask.sum()) for m in masks) / sum(m.mask.numel() for m in masks)
            rows.append((max(float(m.violation.abs().max()) for m in masks), removed, seen[EPOCHS - 1], seen[-1]))
        worst = max(row[0] for row in rows)
        removed, fixed, tuned = (statistics.mean(row[n] for row in rows) for n in (1, 2, 3))
        note = "" if worst <= FEASIBLE else "  infeasible"
        shown = f"{worst:10.1e} {removed:9.3f} {dense[kind]:7.4f} {fixed:7.4f} {tuned:7.4f} {time.perf_counter() - start:5.0f}{note}"
        print(f"{job.name:28} {kind:4} {shown}", flush=True)


if __name__ == "__main__":
    main()
