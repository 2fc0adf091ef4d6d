"""Many trainings by tools in environments of their own: what is asked for is one JSON object, what comes back is a line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read", "sweep"]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sweep(command: Sequence[str], wanted: Iterable[dict[str, Any]], results: Path, measured: Sequence[str]) -> None:
    """Send the specifications that are not in `results` yet to the runner `command` and append each answer as it comes.

    measured: the keys of an answer that were not asked for. A sweep may be stopped and taken up again.
    """

    def asked(run: dict[str, Any]) -> str:
        return json.dumps({k: v for k, v in run.items() if k not in measured}, sort_keys=True)

    done = {asked(run) for run in read(results)}
    todo = [spec for spec in wanted if asked(spec) not in done]
    print(f"{len(todo)} runs to make, {len(done)} in {results}")
    environment = {**os.environ, **ONE_THREAD}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        for spec in todo:
            print(json.dumps(spec), file=runner.stdin, flush=True)
            answer = runner.stdout.readline()
            if not answer:
                raise SystemExit(f"the runner stopped at {spec}")
            with results.open("a") as file:
                file.write(answer)
            print(answer, end="", flush=True)
        runner.stdin.close()
