"""The demo's residual network in small (a channel, 4 bits, the middle of the images) all the way: circuit, RTL, simulation, synthesis."""

from __future__ import annotations

import pytest
import torch

from pquant_fx.demo_network import ResidualNet, load_digits
from tests.rtl_networks import frozen, needs, small_bits

pytest.importorskip("alkaid")


def network():
    torch.manual_seed(0)
    data = load_digits()
    train, test = (x[:, :, 2:6, 2:6] for x in (data.x, data.x_test))
    return frozen(ResidualNet(1).eval(), train[:200], small_bits(4)), test


@needs("iverilog")
def test_the_residual_network_has_every_bit_in_simulation(tmp_path):
    model, test = network()
    project = model.to_rtl(tmp_path / "rtl", test[:100], structure="layers")
    assert project.trusted >= 1400
    report = project.simulate([test[100:110].numpy()], 10, tools=("iverilog",))
    assert report.ok, report


@needs("yosys")
def test_the_residual_network_is_counted(tmp_path):
    model, _ = network()
    found = model.synthesize(tmp_path / "rtl", structure="layers", progress=False)
    assert found.total.ff > 500
    assert found.cycles > 5
    assert found.total.lut == sum(s.instances * s.cells.lut for s in found.stages) > 1000
    assert max(s.instances for s in found.stages) == 16
