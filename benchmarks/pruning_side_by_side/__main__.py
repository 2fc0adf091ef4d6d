"""Pruning side by side: accuracy at equal sparsity of this package and of pquant-ml 0.1.0, in float, with equal data and epochs.

    python -m venv PQUANTVENV  && PQUANTVENV/bin/pip install pquant-ml==0.1.0 torch

    python -m benchmarks.pruning_side_by_side run --data DATA --results runs.jsonl --tool ours
    python -m benchmarks.pruning_side_by_side run --data DATA --results runs.jsonl --tool pquant_ml --python PQUANTVENV/bin/python
    python -m benchmarks.pruning_side_by_side report --results runs.jsonl

DATA holds pendigits.npz (x_train, y_train, x_test, y_test); the digits are scikit-learn's. An MLP 16-64-32-32-10 and a small
residual CNN, 10 epochs of pre-training, 40 of training, 10 of fine-tuning, three seeds. Runs that are in the results file are
skipped, so a sweep may be stopped and taken up again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.pruning_side_by_side.plan import plan
from benchmarks.pruning_side_by_side.report import report
from benchmarks.pruning_side_by_side.tasks import write_digits
from benchmarks.sweep import read, sweep

MEASURED = ("accuracy", "sparsity", "wall_s", "cpu_s", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs of one tool")
    run.add_argument("--tool", required=True, choices=("ours", "pquant_ml"))
    run.add_argument("--python", default=sys.executable, help="interpreter of the tool's environment (default: this one)")
    run.add_argument("--data", required=True, type=Path, help="folder with pendigits.npz")
    run.add_argument("--method", help="only the runs of that method")
    run.add_argument("--dataset", help="only the runs on that data set")
    show = commands.add_parser("report", help="table of what was run")
    for command in (run, show):
        command.add_argument("--results", required=True, type=Path, help="JSON lines")
    options = parser.parse_args()
    if options.command == "run":
        wanted = (s for s in plan(options.tool) if options.method in (None, s["method"]) and options.dataset in (None, s["dataset"]))
        with tempfile.TemporaryDirectory() as folder:
            write_digits(Path(folder) / "digits.npz")
            (Path(folder) / "pendigits.npz").symlink_to((options.data / "pendigits.npz").resolve())
            command = [options.python, "-m", f"benchmarks.pruning_side_by_side.{options.tool}", folder]
            sweep(command, wanted, options.results, MEASURED)
    else:
        report(read(options.results))


if __name__ == "__main__":
    main()
