"""Layers: convolutions, normalisation, pooling, attention, recurrence."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.structures import structure


@structure(x=(3, 8, 6))
class ConvBnRelu(nn.Module):
    NAME = "conv_bn_relu"

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))

    def forward(self, x):
        return self.head(self.body(x))


@structure(x=(8,))
class LinearBn1d(nn.Module):
    NAME = "linear_bn1d"

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.out = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(F.relu(self.bn(self.fc(x))))


@structure(x=(7, 10))
class BnFirstThenConv1dDeepset(nn.Module):
    NAME = "bn_first_then_conv1d_deepset"

    def __init__(self):
        super().__init__()
        self.bn, self.phi = nn.BatchNorm1d(10), nn.Conv1d(10, 6, 1)
        self.pool, self.rho = nn.AvgPool1d(7), nn.Linear(6, 3)

    def forward(self, x):
        x = self.bn(x.type(torch.float32).permute(0, 2, 1))
        return self.rho(self.pool(F.relu(self.phi(x))).squeeze(-1))


class _One(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = self.make()

    def forward(self, x):
        return torch.relu(self.layer(x))


@structure(x=(4, 7, 5))
class Depthwise(_One):
    NAME = "depthwise"

    def make(self):
        return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 3, 1))


@structure(x=(4, 7, 5))
class GroupedConv(_One):
    NAME = "grouped_conv"

    def make(self):
        return nn.Conv2d(4, 6, 3, stride=(2, 1), groups=2)


@structure(x=(4, 5, 3))
class ConvTranspose(_One):
    NAME = "conv_transpose"

    def make(self):
        return nn.ConvTranspose2d(4, 2, 2, stride=2)


@structure(x=(4, 11))
class DilatedConv1d(_One):
    NAME = "dilated_conv1d"

    def make(self):
        return nn.Conv1d(4, 3, 3, padding="same", dilation=2)


@structure(x=(4, 11))
class CausalPadF(_One):
    NAME = "causal_pad_F"

    def make(self):
        return nn.Conv1d(4, 3, 4)

    def forward(self, x):
        return torch.relu(self.layer(F.pad(x, (3, 0))))


@structure(x=(2, 8, 4))
class UpsampleUnetSkip(nn.Module):
    NAME = "upsample_unet_skip"

    def __init__(self):
        super().__init__()
        self.enc, self.mid, self.dec = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x):
        skip = torch.relu(self.enc(x))
        return self.dec(torch.cat([self.up(torch.relu(self.mid(self.pool(skip)))), skip], 1))


@structure(x=(2, 9, 5))
class InterpolateSizeOf(UpsampleUnetSkip):
    NAME = "interpolate_size_of"

    def forward(self, x):
        skip = torch.relu(self.enc(x))
        y = F.interpolate(self.mid(self.pool(skip)), size=skip.shape[2:], mode="nearest")
        return self.dec(torch.cat([y, skip], 1))


@structure(x=(4, 5, 3))
class SqueezeExcite(nn.Module):
    NAME = "squeeze_excite"

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x):
        b, c, _, _ = x.size()
        w = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * torch.sigmoid(self.b(F.relu(self.a(w)))).view(b, c, 1, 1)


@structure(x=(4, 5, 3))
class GlobalMeanDims(nn.Module):
    NAME = "global_mean_dims"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


@structure(x=(6, 4))
class SumPoolDeepset(nn.Module):
    NAME = "sum_pool_deepset"

    def __init__(self):
        super().__init__()
        self.phi, self.rho = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.rho(torch.sum(torch.relu(self.phi(x)), dim=1))


@structure(x=(6, 4), integers=3)
class MaskedMean(SumPoolDeepset):
    NAME = "masked_mean"

    def forward(self, x):
        mask = (x[..., 0] != 0).float().unsqueeze(-1)
        return self.rho((self.phi(x) * mask).sum(1) / mask.sum(1).clamp(min=1))


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.qkv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)


@structure(x=(5, 8))
class Mha(_Attention):
    NAME = "mha"

    def forward(self, x):
        y, _ = self.mha(x, x, x, need_weights=False)
        return self.out(y)


@structure(x=(5, 8))
class ManualAttentionMathsqrt(_Attention):
    NAME = "manual_attention_mathsqrt"

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        scores = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1)
        return self.out(scores @ self.v(x))


@structure(x=(5, 8))
class Sdpa(_Attention):
    NAME = "sdpa"

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, 2, c // 2).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


@structure(x=(5, 8))
class Einsum(_Attention):
    NAME = "einsum"

    def forward(self, x):
        return self.out(torch.einsum("bij,bkj->bik", self.q(x), self.k(x)) @ x)


@structure(x=(6, 4))
class MlpMixerTranspose(nn.Module):
    NAME = "mlp_mixer_transpose"

    def __init__(self):
        super().__init__()
        self.tokens, self.channels, self.norm = nn.Linear(6, 6), nn.Linear(4, 4), nn.BatchNorm1d(6)

    def forward(self, x):
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return (x + self.channels(x)).mean(dim=1)


@structure(x=(6, 4))
class Layernorm(nn.Module):
    NAME = "layernorm"

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.norm(x))


@structure(x=(5,), integers=7)
class Embedding(nn.Module):
    NAME = "embedding"

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.table(x.long()).mean(1))


@structure(x=(6, 4))
class LstmLast(nn.Module):
    NAME = "lstm_last"

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        o, (h, _) = self.lstm(x)
        return self.fc(o[:, -1] + h[-1])


@structure(x=(6,))
class Relu6HardswishLeaky(nn.Module):
    NAME = "relu6_hardswish_leaky"

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.ReLU6(), nn.Hardswish(), nn.LeakyReLU(0.125, inplace=True)

    def forward(self, x):
        return self.a(x * 4) + self.b(x) + self.c(x - 1) + F.hardtanh(x, -0.5, 0.25)


@structure(x=(6,))
class SoftmaxHead(nn.Module):
    NAME = "softmax_head"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return nn.Softmax(dim=1)(self.fc(x))
