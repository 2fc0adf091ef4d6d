"""`python -m benchmarks` runs those that need no data; the others are named with what they need."""

from __future__ import annotations

from benchmarks import compile_time, stream_fifos, training_step


def main() -> None:
    compile_time.main()
    training_step.main()
    stream_fifos.main()
    print("\nThese need data or the peers' own environments, and explain themselves with --help:")
    for name in ("resnet20", "budget", "hgq_side_by_side", "pruning_side_by_side", "mdmm_feasibility", "removal", "synthesis", "fuzz"):
        print(f"  python -m benchmarks.{name}")


if __name__ == "__main__":
    main()
