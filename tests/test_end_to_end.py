"""The promise on ordinary structures: 8 bits stay close to the float model, 16 bits very close, and every engine gives torch's bits."""

from __future__ import annotations

import pytest

from tests.end_to_end import BITS16, assert_bits, compiled, error, float_outputs, trained
from tests.structures_fixed import FIXED, names


@pytest.mark.parametrize("name", names("structures_fixed"))
def test_sharing_joins_and_interfaces(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", names("structures_fixed_constants"))
def test_constants(name: str) -> None:
    check(name)


def check(name: str) -> None:
    case = FIXED[name]
    net, x = case.model(), case.inputs(64)
    expected = float_outputs(net, x)
    model = compiled(case, "fixed8")
    assert error(expected, model.freeze()(**x)) < 0.02
    assert error(expected, compiled(case, BITS16).freeze()(**x)) < 1e-4  # a wrong rewrite does not hide behind rounding
    assert_bits(trained(model, case), case)
