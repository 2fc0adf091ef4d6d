"""The two constants of `pquant_fx.estimate.fabric` that say how adders of constant matrices are shared, from random matrices.

    python -m benchmarks.synthesis.sharing [--matrices 150] [--seed 0]

Each matrix goes through alkaid, which counts adders and their cost. Fitted by least squares in the logarithm:

    adders = sum_o (t_o - 1) exp(c) (T / K)^a (T / O)^b          T signed digits in all, K rows, O columns
    cost of an adder = u (bits of the inputs) + v (bits of the sum)
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from pquant_fx.lower.rtl.adapter import Solver, logic, variables

__all__ = ["measured"]

Rows = NDArray[np.float64]


def digits(codes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Nonzero digits of each code in canonical signed digits: the ones of n xor 3n."""
    whole = np.abs(codes.astype(np.int64))
    return np.bitwise_count(whole ^ (3 * whole)).astype(np.int64)


def measured(matrices: int, seed: int) -> Rows:
    """A row for each matrix: K, O, input bits, mean bits of the sums, adders without sharing, T, adders, cost."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(matrices):
        inputs, outputs = int(rng.choice([4, 8, 9, 16, 32, 64])), int(rng.choice([1, 2, 4, 8, 16, 32]))
        bits, zeros = int(rng.integers(2, 10)), float(rng.choice([0, 0.3, 0.5, 0.8, 0.9]))
        data_bits, signed = int(rng.integers(2, 10)), int(rng.integers(0, 2))
        top = 2.0 ** (bits - 1)
        weights = np.clip(np.rint(rng.normal(size=(inputs, outputs)) * top / 3), -top, top - 1)
        weights *= rng.random(weights.shape) > zeros
        if not weights.any():
            continue
        x = variables(np.full(inputs, signed), np.full(inputs, data_bits - signed), np.zeros(inputs, int))
        program = logic(list(x), list(Solver()(x[None], weights)[0]))
        terms = digits(weights).sum(0)
        sums = np.abs(weights).sum(0)
        widths = np.log2(np.maximum(sums[sums > 0], 1)) + data_bits
        adders = sum(op.opcode in (0, 1) for op in program.ops)  # sums and differences
        alone = terms[terms > 0].sum() - (terms > 0).sum()
        rows.append((inputs, outputs, data_bits, widths.mean(), alone, terms.sum(), adders, program.cost))
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = measured(args.matrices, args.seed)
    rows = rows[rows[:, 6] > 3]  # of fewer adders nothing can be shared
    inputs, outputs, data_bits, sum_bits, alone, terms, adders, cost = rows.T
    shared = np.stack([np.ones(len(rows)), np.log(terms / inputs), np.log(terms / outputs)], 1)
    found, *_ = np.linalg.lstsq(shared, np.log(adders / alone), rcond=None)
    off = np.abs(np.exp(shared @ found) * alone / adders - 1)
    print(f"adders: exp(c) = {np.exp(found[0]):.3f}, a = {found[1]:.3f}, b = {found[2]:.3f}; median error {np.median(off):.1%}")
    widths = np.stack([data_bits, sum_bits], 1)
    shares, *_ = np.linalg.lstsq(widths * (adders / cost)[:, None], np.ones(len(rows)), rcond=None)
    off = np.abs(widths @ shares * adders / cost - 1)
    print(f"bits of an adder: {shares[0]:.2f} of the inputs, {shares[1]:.2f} of the sum; median error {np.median(off):.1%}")


if __name__ == "__main__":
    main()
