"""`python -m benchmarks` runs those that need no data; the others are named with what they need."""

from __future__ import annotations

from benchmarks import compile_time


def main() -> None:
    compile_time.main()
    print("\nresnet20 needs data: python -m benchmarks.resnet20 --weights resnet20.npz --data cifar10.npz")


if __name__ == "__main__":
    main()
