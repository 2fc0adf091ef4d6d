"""HGQ side by side on pendigits and dry_bean: accuracy against EBOPs of this package, HGQ2 0.2.0 (jax) and pquant-ml 0.1.0 (torch).

Every peer runs in its own virtual environment, one process and one thread at a time:

    python -m venv HGQ2VENV    && HGQ2VENV/bin/pip install hgq2==0.2.0 keras "jax[cpu]"
    python -m venv PQUANTVENV  && PQUANTVENV/bin/pip install pquant-ml==0.1.0 torch

    python -m benchmarks.hgq_side_by_side run --data DATA --results runs.jsonl --tool hgq2 --python HGQ2VENV/bin/python
    python -m benchmarks.hgq_side_by_side run --data DATA --results runs.jsonl --tool pquant_ml --python PQUANTVENV/bin/python
    python -m benchmarks.hgq_side_by_side run --data DATA --results runs.jsonl --tool ours
    python -m benchmarks.hgq_side_by_side report --results runs.jsonl --plot front.png     (matplotlib for the plot)

DATA holds pendigits.npz and dry_bean.npz (x_train, y_train, x_test, y_test). Runs that are in the results file are skipped, so a
sweep may be stopped and taken up again. Weights 16-64-32-32-C, Adam 4e-3 with cosine decay, batch 512, 250 epochs, five seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.hgq_side_by_side.plan import plan
from benchmarks.hgq_side_by_side.protocol import MEASURED
from benchmarks.hgq_side_by_side.report import report
from benchmarks.sweep import read, sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs of one tool")
    run.add_argument("--tool", required=True, choices=("ours", "hgq2", "pquant_ml"))
    run.add_argument("--python", default=sys.executable, help="interpreter of the tool's environment (default: this one)")
    run.add_argument("--data", required=True, help="folder with pendigits.npz and dry_bean.npz")
    run.add_argument("--epochs", type=int, help="only the runs of that length")
    run.add_argument("--dataset", help="only the runs on that data set")
    show = commands.add_parser("report", help="table and plot of what was run")
    show.add_argument("--plot", type=Path, help="PNG to write")
    for command in (run, show):
        command.add_argument("--results", required=True, type=Path, help="JSON lines")
    options = parser.parse_args()
    if options.command == "run":
        wanted = (s for s in plan(options.tool) if options.epochs in (None, s["epochs"]) and options.dataset in (None, s["dataset"]))
        command = [options.python, "-m", f"benchmarks.hgq_side_by_side.{options.tool}", options.data]
        sweep(command, wanted, options.results, MEASURED)
    else:
        report(read(options.results), options.plot)


if __name__ == "__main__":
    main()
