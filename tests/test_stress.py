"""Stress samples are what they are called: ties, their neighbours, saturating, wrapping and extreme values, the same every time."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.lower.stress import KINDS, input_formats, stress_samples

BITS = (1, 2, 5)
HIGH, LSB = 4.0, 2.0**-5


def samples(count: int = 8 * KINDS) -> np.ndarray:
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    (made,) = stress_samples([x], [BITS], count)
    assert made.dtype == torch.float32
    return made.double().numpy()


def test_each_kind_is_there() -> None:
    made = samples()
    kind = [made[n::KINDS] for n in range(KINDS)]
    codes = [part / LSB for part in kind]
    assert (codes[0] - np.floor(codes[0]) == 0.5).all()
    off = codes[1] - np.floor(codes[1])
    assert ((off != 0.5) & (np.abs(off - 0.5) < 1e-4)).all()
    assert len(np.unique(np.sign(off - 0.5))) == 2
    assert (np.abs(kind[3]).max(axis=1) > HIGH).all()
    assert np.abs(kind[3]).max() <= 4 * HIGH
    assert {HIGH - LSB, HIGH, -HIGH, -HIGH - LSB} <= set(np.unique(kind[4]))
    assert set(np.unique(kind[5])) == {-HIGH, HIGH - LSB}
    assert np.abs(kind[6]).max() <= LSB
    assert np.isfinite(made).all()


def test_they_are_the_same_again_and_one_kind_for_all_inputs() -> None:
    assert np.array_equal(samples(), samples())
    x = [torch.randn(5, 3), torch.randn(5, 4)]
    a, b = stress_samples(x, [BITS, (0, 1, 3)], KINDS)
    assert (len(a), len(b)) == (KINDS, KINDS)
    assert bool(((a[0] / LSB).frac().abs() == 0.5).all())
    assert bool(((b[0] * 8).frac().abs() == 0.5).all())


def test_formats_are_those_of_the_inputs_quantizers() -> None:
    torch.manual_seed(0)
    config = {"preset": "fixed8", "inputs": {"input": {"format": "ufixed<7,3>"}}}
    frozen = pq.compile(nn.Sequential(nn.Linear(4, 2)), config, torch.rand(16, 4)).freeze()
    assert input_formats(frozen.graph_module) == [(0, 3, 4)]


def test_verify_counts_them_apart_and_can_do_without() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    frozen = pq.compile(nn.Sequential(nn.Linear(4, 2)), "fixed8", x).freeze()
    report = frozen.verify(x, targets=("integer", "onnx"))
    assert (report.samples, report.stress, report.ok) == (20, 32, True)
    assert "52" in report.table
    assert frozen.verify(x, targets=("integer",), stress=0).stress == 0
