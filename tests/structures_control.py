"""Python control flow, modes, factories and writes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.structures import structure


class _Fc(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)


@structure(x=(8,))
class FunctionalDropout(_Fc):
    NAME = "functional_dropout"

    def forward(self, x):
        return self.b(F.dropout(torch.relu(self.a(x)), 0.5, training=self.training))


@structure(x=(8,))
class IfTraining(_Fc):
    NAME = "if_training"

    def forward(self, x):
        y = self.a(x)
        if self.training:
            y = F.dropout(y, 0.25)
        return self.b(y)


class _Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, stride, 1)
        self.down = nn.Conv2d(a, b, 1, stride)

    def forward(self, x):
        z = self.conv(x)
        if x.shape != z.shape:
            x = self.down(x)
        return torch.relu(z + x)


@structure(x=(4, 6, 6))
class IfShapeDownsample(nn.Module):
    NAME = "if_shape_downsample"

    def __init__(self):
        super().__init__()
        self.one, self.two = _Block(4, 4, 1), _Block(4, 5, 2)

    def forward(self, x):
        return self.two(self.one(x))


@structure(x=(8,))
class AssertShape(_Fc):
    NAME = "assert_shape"

    def forward(self, x):
        assert x.dim() == 2, "flat input expected"
        assert x.shape[1] == 8
        assert isinstance(x, torch.Tensor)
        return self.b(self.a(x)[:, : int(x.size(1) / 2) + 2])


@structure(x=(8,))
class KwargNone(_Fc):
    NAME = "kwarg_none"

    def forward(self, x, mask=None, *, scale=2.0):
        y = self.a(x)
        if mask is not None:
            y = y * mask
        return self.b(y) * scale


@structure(x=(8,))
class VaeReparam(nn.Module):
    NAME = "vae_reparam"

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(8, 6), nn.Linear(3, 8)

    def forward(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu
        if self.training:
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.dec(z), mu, logvar


@structure(x=(8,))
class Setitem(_Fc):
    NAME = "setitem"

    def forward(self, x):
        y = self.a(x)
        y[:, 0] = 0
        return self.b(y)


@structure(x=(8,))
class ZerosFromBatch(_Fc):
    NAME = "zeros_from_batch"

    def forward(self, x):
        pad = torch.zeros(x.shape[0], 2, device=x.device, dtype=x.dtype)
        steps = torch.arange(x.size(0), device=x.device).to(x.dtype).unsqueeze(1)
        return self.b(self.a(x)) * torch.cat([x.new_zeros(x.size(0), 1), pad], 1).add(1) + steps
