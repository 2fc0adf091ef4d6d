"""Every operator that hls4ml takes with io_parallel, in C simulation: the bits of torch."""

from __future__ import annotations

import pytest

from tests.op_simulation import groups, wrong_in_simulation

pytestmark = pytest.mark.hls


@pytest.mark.parametrize("group", range(len(groups("io_parallel"))))
def test_the_c_simulation_gives_the_bits_of_torch(group: int) -> None:
    assert wrong_in_simulation(groups("io_parallel")[group], "io_parallel") == {}
