"""Every operator that hls4ml takes with io_stream, in C simulation: the bits of torch, and no packet left in a stream."""

from __future__ import annotations

import ctypes

import pytest

from tests.op_simulation import groups, wrong_in_simulation

pytestmark = pytest.mark.hls


@pytest.mark.parametrize("group", range(len(groups("io_stream"))))
def test_the_c_simulation_gives_the_bits_of_torch(group: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert wrong_in_simulation(groups("io_stream")[group], "io_stream") == {}
    ctypes.CDLL(None).fflush(None)
    assert "leftover" not in "".join(capfd.readouterr())
