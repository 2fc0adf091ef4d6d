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
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.hgq_side_by_side.plan import plan
from benchmarks.hgq_side_by_side.protocol import MEASURED
from benchmarks.hgq_side_by_side.report import read, report

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
}


def asked(run: dict[str, Any]) -> str:
    """What identifies a run: its specification without what was measured."""
    return json.dumps({k: v for k, v in run.items() if k not in MEASURED}, sort_keys=True)


def sweep(tool: str, python: str, data: str, results: Path, epochs: int | None, dataset: str | None) -> None:
    """Send what is not yet in `results` to the tool's runner and append each answer as it comes."""
    done = {asked(run) for run in read(results)} if results.exists() else set()
    todo = [s for s in plan(tool) if asked(s) not in done and epochs in (None, s["epochs"]) and dataset in (None, s["dataset"])]
    print(f"{tool}: {len(todo)} runs to make, {len(done)} in {results}")
    command = [python, "-m", f"benchmarks.hgq_side_by_side.{tool}", data]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        for spec in todo:
            print(json.dumps(spec), file=runner.stdin, flush=True)
            answer = runner.stdout.readline()
            if not answer:
                raise SystemExit(f"{tool}'s runner stopped at {spec}")
            with results.open("a") as file:
                file.write(answer)
            print(answer, end="")
        runner.stdin.close()


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
        sweep(options.tool, options.python, options.data, options.results, options.epochs, options.dataset)
    else:
        report(read(options.results), options.plot)


if __name__ == "__main__":
    main()
