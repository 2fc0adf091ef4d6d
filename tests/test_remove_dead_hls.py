"""A network that lost channels, compiled by hls4ml: the bits of the masked one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from tests.models import OptionA

pytestmark = pytest.mark.hls


class Small(nn.Module):
    """Depthwise, option-A shortcut, concatenation, flatten: (N, 3, 4, 4) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), OptionA(4)
        self.side, self.head = nn.Conv2d(8, 3, 1), nn.Linear(11 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.relu(self.depth(F.relu(self.stem(x)))))
        return self.head(torch.cat([x, F.relu(self.side(x))], 1).flatten(1))


def test_hls4ml_gives_the_bits_of_the_masked_network():
    torch.manual_seed(0)
    net = Small().eval()
    with torch.no_grad():
        for p, units in (
            (net.depth.weight, [1]),
            (net.depth.bias, [1]),
            (net.down.conv1.weight, [0, 5, 6]),
            (net.down.conv2.weight, [1, 3, 7]),  # 3 is what channel 1 becomes behind the pads
            (net.side.weight, [2]),
            (net.side.bias, [2]),
        ):
            p[units] = 0
    x = torch.randn(24, 3, 4, 4)
    model = pq.compile(net, "fixed8", x)
    masked, small = model.freeze(remove_dead_channels=False), model.freeze()
    gone = {r.layer: (len(r.removed_outputs), len(r.removed_inputs)) for r in small.removed.layers}
    assert gone == {"stem": (1, 0), "depth": (1, 1), "down.conv1": (3, 1), "down.conv2": (3, 3), "side": (1, 3), "head": (0, 16)}
    samples = torch.cat([x, 40 * x])
    assert torch.equal(masked.integer(samples), small.integer(samples))
    assert small.verify(samples, targets=("integer", "hls4ml")).ok
