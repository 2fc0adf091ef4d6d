"""Beta schedules and the PI(D) controller, by their formulas and published vector."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pquant_fx.config import BetaController, BetaPoint
from pquant_fx.train.beta import ConstantBeta, ControlledBeta, PiecewiseBeta, beta_of


def never() -> float:
    raise AssertionError("a schedule needs no count")


def betas(source, counts, start=0):
    """Beta of each epoch from `start` on, where the network has these EBOPs."""
    return [source.at(start + n, lambda ebops=ebops: ebops) for n, ebops in enumerate(counts)]


def controlled(**more) -> ControlledBeta:
    return ControlledBeta(BetaController(**{"target_ebops": 1e4, "init_beta": 1e-6, "warmup_epochs": 0} | more))


# ---- schedules
def test_a_number_is_the_same_in_every_epoch():
    assert [ConstantBeta(2e-5).at(e, never) for e in (0, 1, 1000)] == [2e-5] * 3


def test_each_kind_of_segment_follows_its_formula():
    points = [BetaPoint(0, 1e-6, "log"), BetaPoint(4, 1e-4, "linear"), BetaPoint(8, 3e-4, "constant"), BetaPoint(10, 0.0, "linear")]
    schedule = PiecewiseBeta(points)
    expected = {0: 1e-6, 1: 1e-6 * 10**0.5, 2: 1e-5, 4: 1e-4, 5: 1.5e-4, 6: 2e-4, 7: 2.5e-4, 8: 3e-4, 9: 3e-4, 10: 0.0, 99: 0.0}
    assert {e: schedule.at(e, never) for e in expected} == pytest.approx(expected, rel=1e-12)


def test_the_last_point_stays_whatever_its_segment_is_called():
    assert PiecewiseBeta([BetaPoint(0, 1e-6, "log")]).at(50, never) == 1e-6
    assert PiecewiseBeta([BetaPoint(0, 1e-6, "log"), BetaPoint(2, 1e-5, "linear")]).at(3, never) == 1e-5


@given(st.floats(1e-9, 1e-2), st.floats(1e-9, 1e-2), st.integers(1, 50))
def test_a_log_segment_has_a_constant_ratio_and_a_linear_one_a_constant_difference(first, last, length):
    log = PiecewiseBeta([BetaPoint(0, first, "log"), BetaPoint(length, last)])
    linear = PiecewiseBeta([BetaPoint(0, first, "linear"), BetaPoint(length, last)])
    for e in range(length):
        assert log.at(e + 1, never) / log.at(e, never) == pytest.approx((last / first) ** (1 / length), rel=1e-6)
        assert linear.at(e + 1, never) - linear.at(e, never) == pytest.approx((last - first) / length, rel=1e-6, abs=1e-15)


def test_the_setting_says_which_source_it_is():
    assert isinstance(beta_of(1e-6), ConstantBeta)
    assert isinstance(beta_of((BetaPoint(0, 1e-6),)), PiecewiseBeta)
    assert isinstance(beta_of(BetaController(target_ebops=1.0)), ControlledBeta)


# ---- controller
def test_the_published_vector():
    found = betas(controlled(), [1e5, 8e4, 5e4, 2e4, 9e3])
    assert found == pytest.approx([1.0000e-6, 8.0333e-7, 5.0370e-7, 2.0176e-7, 9.0773e-8], rel=1e-4)


def test_warm_up_counts_nothing_and_control_takes_over_without_a_jump():
    controller = controlled(warmup_epochs=3)
    assert [controller.at(e, never) for e in range(3)] == [1e-6] * 3
    assert betas(controller, [1e5, 8e4], start=3) == pytest.approx([1.0000e-6, 8.0333e-7], rel=1e-4)


def test_the_derivative_acts_on_the_change_of_the_error():
    plain, with_d = (betas(controlled(d=d), [1e5, 1e4])[1] for d in (0.0, 0.5))
    assert math.log10(with_d / plain) == pytest.approx(0.5 * (0 - 1))


def test_damping_lowers_beta_under_the_target_only():
    plain, damped = betas(controlled(), [1e5, 2e4, 9e3]), betas(controlled(damp=0.25), [1e5, 2e4, 9e3])
    assert damped[:2] == plain[:2]
    assert damped[2] == pytest.approx(0.75 * plain[2])


def test_beta_stays_in_its_bounds_and_the_integral_does_not_wind_up():
    bound = 3e-6
    fast = {"p": 0.0, "i": 0.5}
    long = betas(controlled(beta_max=bound, **fast), [1e5] * 50 + [1e3] * 2)
    short = betas(controlled(beta_max=bound, **fast), [1e5] * 5 + [1e3] * 2)
    assert max(long) == bound
    assert long[-2:] == pytest.approx(short[-2:])  # 45 more epochs at the bound change nothing afterwards
    assert long[-2] < bound
    assert betas(controlled(beta_min=5e-7), [1e5, 1e2])[1] == 5e-7


def test_no_ebops_give_the_smallest_beta_and_leave_the_state_alone():
    controller = controlled(beta_min=1e-9)
    assert betas(controller, [0.0]) == [1e-9]
    assert betas(controller, [1e5, 0.0, 8e4]) == pytest.approx([1e-6, 1e-9, 8.0333e-7], rel=1e-4)


def test_a_linear_error_is_the_excess_in_targets():
    found = betas(controlled(error="linear", p=0.1, i=0.01), [3e4, 2e4, 0.5e4])
    # err 2, 1, -0.5; the integral starts where the first beta is init_beta: log10 beta = 0.1 err + 0.01 I
    integral = (-6 - 0.1 * 2) / 0.01
    assert found == pytest.approx([1e-6, 10 ** (0.1 + 0.01 * (integral + 1)), 10 ** (-0.05 + 0.01 * (integral + 0.5))])


def test_an_absurd_error_gives_a_finite_beta():
    assert math.isfinite(betas(controlled(p=1e4), [1.0, 1e30])[1])


def test_a_controller_goes_on_from_its_state():
    counts = [1e5, 8e4, 5e4, 2e4, 9e3]
    first, second = controlled(), controlled()
    found = betas(first, counts[:2])
    second.load_state_dict(first.state_dict())
    assert found + betas(second, counts[2:], start=2) == betas(controlled(), counts)
