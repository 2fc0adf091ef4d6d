"""Sharing, names, shapes, slices and joins."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.structures import structure


@structure(x=(8,))
class SharedRelu(nn.Module):
    NAME = "shared_relu"

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(8, 6), nn.Linear(6, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x))))


@structure(x=(8,))
class SharedLinearTwice(nn.Module):
    NAME = "shared_linear_twice"

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.fc(torch.relu(self.fc(x)))))


@structure(a=(8,), b=(8,))
class SiameseTwoInputs(nn.Module):
    NAME = "siamese_two_inputs"

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(8, 6), nn.ReLU()), nn.Linear(6, 2)

    def forward(self, a, b):
        return self.head(self.encoder(b) - self.encoder(a))


@structure(x=(3, 8, 6))
class FunctionalOnly(nn.Module):
    NAME = "functional_only"

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(4, 3, 3, 3) / 5), nn.Parameter(torch.randn(4))
        self.w2 = nn.Parameter(torch.randn(5, 4 * 4 * 3) / 7)
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4) / 4)
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        x = F.conv2d(x, self.w1, self.b1, padding=1)
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training)
        x = F.max_pool2d(F.relu(x, inplace=True), 2)
        return F.linear(torch.flatten(x, 1), self.w2)


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)


@structure(x=(8,))
class InplaceIaddResidual(_Residual):
    NAME = "inplace_iadd_residual"

    def forward(self, x):
        y = self.b(F.relu(self.a(x), inplace=True))
        y += x
        return self.out(y.relu_())


@structure(x=(8,))
class ResidualAdd(_Residual):
    NAME = "residual_add"

    def forward(self, x):
        return self.out(torch.relu(x + self.b(torch.relu(self.a(x)))))


@structure(x=(8,))
class XPlusX(_Residual):
    NAME = "x_plus_x"

    def forward(self, x):
        y = self.a(x)
        return self.out(torch.add(y, y))


class _Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 6 * 5, 3)


@structure(x=(2, 6, 5))
class ViewSize0(_Conv):
    NAME = "view_size0"

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


@structure(x=(2, 6, 5))
class ReshapeShapeUnpack(_Conv):
    NAME = "reshape_shape_unpack"

    def forward(self, x):
        x = self.conv(x)
        b, c, h, w = x.shape
        return self.fc(x.reshape(b, c, h * w).reshape(b, c * h * w))


@structure(x=(2, 6, 5))
class FlattenFn(_Conv):
    NAME = "flatten_fn"

    def forward(self, x):
        return self.fc(torch.flatten(self.conv(x), start_dim=1))


class _Slices(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.narrow, self.whole = nn.Linear(6, 8), nn.Linear(4, 3), nn.Linear(8, 3)


@structure(x=(6,))
class Chunk2Add(_Slices):
    NAME = "chunk2_add"

    def forward(self, x):
        a, b = self.fc(x).chunk(2, dim=1)
        return self.narrow(a + b)


@structure(x=(6,))
class SplitSizes(_Slices):
    NAME = "split_sizes"

    def forward(self, x):
        a, b, c = torch.split(self.fc(x), [3, 4, 1], dim=1)
        return self.narrow(b) + a * c


@structure(x=(6,))
class SliceToLinear(_Slices):
    NAME = "slice_to_linear"

    def forward(self, x):
        return self.narrow(self.fc(x)[:, 4:])


@structure(x=(8,))
class SliceSameWidthReverse(_Slices):
    NAME = "slice_same_width_reverse"

    def forward(self, x):
        return torch.cat([self.narrow(x[:, 4:]), self.narrow(x[:, :4])], dim=1)


@structure(x=(6,))
class SliceAdd(_Slices):
    NAME = "slice_add"

    def forward(self, x):
        y = self.fc(x)
        return self.narrow(y[:, :4] + y[:, 4:])


class _Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(6, 5), nn.Linear(6, 3)
        self.out2, self.out3 = nn.Linear(9, 2), nn.Linear(12, 2)


@structure(x=(6,))
class CatBranches(_Branches):
    NAME = "cat_branches"

    def forward(self, x):
        return self.out2(torch.cat([torch.tanh(self.a(x)), torch.relu(self.b(x))], dim=-1))


@structure(x=(6,))
class Cat3(_Branches):
    NAME = "cat3"

    def forward(self, x):
        return self.out3(torch.cat((self.a(x), self.b(x), self.c(x)), 1))


@structure(x=(6,))
class DeadModuleAndUnusedOut(_Branches):
    NAME = "dead_module_and_unused_out"

    def __init__(self):
        super().__init__()
        self.never = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        y = torch.relu(self.a(x))
        self.b(x)
        return y


@structure(x=(8,))
class NameAddModule(nn.Module):
    NAME = "name_add_module"

    def __init__(self):
        super().__init__()
        self.add, self.relu_1, self.const_in = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.const_in(self.relu_1(self.add(x)) + x)


@structure(x=(6,))
class DictOutput(_Branches):
    NAME = "dict_output"

    def forward(self, x):
        return {"jet_id": self.a(x), "pt": (self.b(x), self.c(x))}


@structure(x=(8,))
class TiedWeightsAe(nn.Module):
    NAME = "tied_weights_ae"

    def __init__(self):
        super().__init__()
        self.enc, self.bias = nn.Linear(8, 5), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return F.linear(torch.relu(self.enc(x)), self.enc.weight.t(), self.bias)


@structure(x=(8,))
class ModulelistLoop(nn.Module):
    NAME = "modulelist_loop"

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)})

    def forward(self, x):
        for n, layer in enumerate(self.layers):
            x = layer(x).relu() + (x if n else 0)
        return {name: head(x) for name, head in self.heads.items()}


@structure(x=(8,))
class ParameterScaleLayerscale(_Residual):
    NAME = "parameter_scale_layerscale"

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x):
        return self.out(x + self.gamma * torch.relu(self.a(x)))


@structure(x=(8,))
class BufferNormInput(_Residual):
    NAME = "buffer_norm_input"

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.randn(8))
        self.register_buffer("sd", torch.rand(8) + 0.5)

    def forward(self, x):
        return self.out((x - self.mu) / self.sd)


@structure(x=(8,))
class ScalarOpsLeft(_Residual):
    NAME = "scalar_ops_left"

    def forward(self, x):
        y = self.a(x)
        return self.out(1.0 - 0.5 * y + 2 / (y * y + 1) - (-y))
