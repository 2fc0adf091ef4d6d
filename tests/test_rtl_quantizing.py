"""Quantizers as alkaid's circuits: every mode, on every code of many inputs, against the integer reference."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.graph.interval_codes import Formats, quantize_codes
from pquant_fx.lower.rtl.adapter import field, interpret, logic, rtl_model, variables
from pquant_fx.lower.rtl.quantizing import quantized
from pquant_fx.lower.rtl.simulate import simulate
from tests.rtl_networks import needs

pytest.importorskip("alkaid")


def source(rng):
    """A variable with all of its codes: an input, scaled, shifted, and at times behind a ReLU. (input, variable, codes, f)"""
    k, width, f = int(rng.integers(0, 2)), int(rng.integers(1, 7)), int(rng.integers(-3, 6))
    times, plus = int(rng.choice([1, 1, -1, 3, -2, 5])), int(rng.choice([0, 0, rng.integers(-40, 40)]))
    base = np.arange(-k << (width - k) if k else 0, 1 << (width - k))
    x = variables(np.array([k]), np.array([width - k - f]), np.array([f]))
    made, codes = x[0] * float(times) + plus * 2.0**-f, base * times + plus
    if rng.integers(0, 4) == 0:
        made, codes = made.relu() if made.low < 0 else made, np.maximum(codes, 0)
    return x, made, base * 2.0**-f, codes, f


@pytest.mark.parametrize("overflow", OVERFLOW_MODES)
@pytest.mark.parametrize("rounding", ROUNDING_MODES)
def test_every_mode_is_exact_on_every_code(rounding, overflow):
    rng = np.random.default_rng(sum(map(ord, rounding + overflow)))
    dropped = clipped = 0
    for _ in range(40):
        x, made, base, codes, f = source(rng)
        k = 1 if overflow == "WRAP_SM" else int(rng.integers(0, 2))
        fraction = f + int(rng.integers(-5, 2))
        integers = int(rng.integers(-1, 7)) - fraction
        expected = quantize_codes(codes, f, Formats(*(np.array(n) for n in (k, integers, fraction))), rounding, overflow)
        program = logic(x, [quantized(made, k, integers, fraction, rounding, overflow)])
        got = interpret(program, base[:, None])[:, 0]
        np.testing.assert_array_equal(got, expected * 2.0**-fraction, err_msg=f"{(k, integers, fraction)} of codes {codes} at f={f}")
        dropped += f > fraction
        clipped += bool((abs(codes * 2.0 ** (fraction - f)) >= 2.0 ** (integers + fraction)).any())
    assert dropped >= 10
    assert clipped >= 10


def test_a_bit_of_a_scaled_value_is_the_right_one():
    """alkaid by itself takes the sign for it: 3x is stored as 4 (x - x / 4), and the stored sign weighs 4 as the bit does."""
    x = variables(np.array([1]), np.array([2]), np.array([-1]))
    codes = np.arange(-2, 2) * 2.0
    found = interpret(logic(x, [field(x[0] * 3.0, 0, 3, -2)]), codes[:, None])[:, 0]
    np.testing.assert_array_equal(found, (3 * codes).astype(int) & 4)


def test_no_bits_give_zero():
    x = variables(np.array([1]), np.array([2]), np.array([2]))
    for k, i, f in ((0, 0, 0), (1, -2, 1), (0, -3, 2)):
        made = quantized(x[0], k, i, f, "RND", "SAT")
        assert made.low == made.high == 0


@needs("iverilog")
@pytest.mark.parametrize("seed", range(3))
def test_every_mode_is_exact_in_the_written_verilog(tmp_path, seed):
    """All modes side by side in one circuit, on all codes of one input and their multiples."""
    rng = np.random.default_rng(seed)
    x = variables(np.array([1]), np.array([3]), np.array([2]))
    base = np.arange(-32, 32)
    outputs, expected = [], []
    for rounding in ROUNDING_MODES:
        for overflow in OVERFLOW_MODES:
            times, plus = int(rng.choice([1, -1, 3, -2])), int(rng.integers(-9, 9))
            k = 1 if overflow == "WRAP_SM" else int(rng.integers(0, 2))
            f = int(rng.integers(-2, 3))
            i = int(rng.integers(1, 5)) - f
            made = quantized(x[0] * float(times) + plus / 4, k, i, f, rounding, overflow)
            if made.low == made.high:
                continue
            outputs.append(made)
            codes = quantize_codes(base * times + plus, 2, Formats(*(np.array(n) for n in (k, i, f))), rounding, overflow)
            expected.append(codes * 2.0**-f)
    assert len(outputs) > 35
    program = logic(x, outputs)
    options = {"flavor": "verilog", "clock_period": 5.0, "part": "xcvu13p", "ternary_adders": False}
    rtl_model(program, tmp_path, "net", latency_cutoff=(-1.0, 1.5, 3.0)[seed], **options).write()
    sources = [*sorted(tmp_path.glob("src/static/*.v")), *(p for p in sorted(tmp_path.glob("src/*.v")) if "wrapper" not in p.name)]
    kif = [np.asarray(k, dtype=np.int64) for k in (program.inp_kifs, program.out_kifs)]
    cycles = json.loads((tmp_path / "metadata.json").read_text()).get("latency", -1) + 1 if seed else 0
    found = simulate(sources, "net", "iverilog", base[:, None] / 4, *kif, cycles)
    np.testing.assert_array_equal(found.outputs, np.stack(expected, axis=1))
