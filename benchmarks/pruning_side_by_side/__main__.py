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
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.hgq_side_by_side.__main__ import ONE_THREAD
from benchmarks.pruning_side_by_side.plan import plan
from benchmarks.pruning_side_by_side.report import report
from benchmarks.pruning_side_by_side.tasks import write_digits

MEASURED = ("accuracy", "sparsity", "wall_s", "cpu_s", "error")


def asked(run: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in run.items() if k not in MEASURED}, sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sweep(tool: str, python: str, data: Path, results: Path, method: str | None, dataset: str | None) -> None:
    done = {asked(run) for run in read(results)}
    todo = [s for s in plan(tool) if asked(s) not in done and method in (None, s["method"]) and dataset in (None, s["dataset"])]
    print(f"{tool}: {len(todo)} runs to make, {len(done)} in {results}")
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits.npz")
        (Path(folder) / "pendigits.npz").symlink_to((data / "pendigits.npz").resolve())
        command = [python, "-m", f"benchmarks.pruning_side_by_side.{tool}", folder]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}
        ) as runner:
            assert runner.stdin is not None
            assert runner.stdout is not None
            for spec in todo:
                print(json.dumps(spec), file=runner.stdin, flush=True)
                answer = runner.stdout.readline()
                if not answer:
                    raise SystemExit(f"{tool}'s runner stopped at {spec}")
                with results.open("a") as file:
                    file.write(answer)
                print(answer, end="", flush=True)
            runner.stdin.close()


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
        sweep(options.tool, options.python, options.data, options.results, options.method, options.dataset)
    else:
        report(read(options.results))


if __name__ == "__main__":
    main()
