"""Random networks through every engine: branches, joins, shared modules, formats of 1 to 16 bits, each engine's modes.

    python -m benchmarks.fuzz --graphs 2000                       torch == integer interpreter == plain ONNX
    python -m benchmarks.fuzz --engine hls4ml --graphs 60         and hls4ml's C simulation
    python -m benchmarks.fuzz --engine rtl --graphs 60            and our RTL in iverilog
    python -m benchmarks.fuzz --seed 4711 --graphs 1              one of them again

Ends with exit code 1 when an engine differed, something crashed, or fewer than 70 % of the networks were accepted.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch

from benchmarks.fuzz.trial import ENGINES, Outcome, trial

_ACCEPTED = 0.7


def run(seed: int, graphs: int, engine: str, minutes: float) -> list[Outcome]:
    """Until `graphs` networks got through the engine, or the time is over. For onnx every network counts, accepted or not."""
    found: list[Outcome] = []
    end = time.perf_counter() + 60 * minutes
    passed = 0
    while passed < graphs and time.perf_counter() < end:
        outcome = trial(seed + len(found), engine)
        found.append(outcome)
        passed += engine == "onnx" or outcome.kind != "refused"
        if outcome.kind in ("different", "crashed"):
            print(f"seed {outcome.seed}: {outcome.kind} at {outcome.stage}: {outcome.detail}", flush=True)
        if len(found) % 100 == 0:
            print(f"{len(found)} networks, {dict(Counter(o.kind for o in found))}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first network; the others follow")
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="onnx")
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = run(args.seed, args.graphs, args.engine, args.minutes)
    kinds = Counter(outcome.kind for outcome in found)
    refused = Counter(f"{o.stage} {o.detail}" for o in found if o.kind == "refused")
    accepted = 1 - kinds["refused"] / len(found)
    print(f"{len(found)} networks from seed {args.seed}, {args.engine}: {dict(kinds)}, {accepted:.1%} accepted")
    for reason, count in refused.most_common():
        print(f"  refused {count:5}  {reason}")
    raise SystemExit(int(bool(kinds["different"] or kinds["crashed"]) or accepted < _ACCEPTED))


if __name__ == "__main__":
    main()
