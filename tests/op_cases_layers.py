"""Cases: layers with weights, normalisation by constants, activations, pools, upsampling."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tests.op_cases import Call, case

# ---- weights
case("multiply: Linear on any rank", "Linear", lambda: nn.Linear(6, 4), (6,))
case("multiply: Linear on any rank", "Linear without bias", lambda: nn.Linear(6, 4, bias=False), (6,))
case("multiply: Linear on any rank", "Linear of rank 2", lambda: nn.Linear(6, 4), (3, 6))
case("multiply: Linear on any rank", "Linear of rank 3", lambda: nn.Linear(5, 4), (2, 3, 5))
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv1d",
    lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1),
    (3, 8),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv1d with dilation",
    lambda: nn.Conv1d(2, 3, 3, dilation=2, padding="same"),
    (2, 8),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv1d with groups",
    lambda: nn.Conv1d(4, 6, 3, groups=2),
    (4, 7),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d",
    lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
    (2, 5, 4),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d without bias",
    lambda: nn.Conv2d(2, 3, 1, bias=False),
    (2, 4, 3),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d with dilation",
    lambda: nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=(2, 1)),
    (2, 5, 4),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d with groups",
    lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    (4, 4, 3),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d, depthwise",
    lambda: nn.Conv2d(4, 8, 3, groups=4),
    (4, 5, 4),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d of one row",
    lambda: nn.Conv2d(2, 3, (1, 2), stride=2),
    (2, 5, 4),
)
case(
    "multiply: Conv1d, Conv2d with stride, padding, dilation, groups, depthwise",
    "Conv2d of one pixel",
    lambda: nn.Conv2d(2, 3, 1, stride=2),
    (2, 5, 4),
)
for mode in ("reflect", "replicate", "circular"):
    for conv, shape in ((nn.Conv1d, (2, 5)), (nn.Conv2d, (2, 5, 4))):
        build = partial(conv, 2, 3, 3, padding=1, padding_mode=mode)
        case("multiply: Conv with another padding_mode", f"{conv.__name__}, {mode}", build, shape, every="PQ201")
case("multiply: Conv3d", "Conv3d", lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3), every="PQ201")
case(
    "multiply: ConvTranspose1d, ConvTranspose2d with any stride",
    "ConvTranspose2d, stride 1",
    lambda: nn.ConvTranspose2d(2, 3, (3, 2), padding=1),
    (2, 4, 3),
)
case(
    "multiply: ConvTranspose1d, ConvTranspose2d with any stride",
    "ConvTranspose1d",
    lambda: nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=1),
    (2, 5),
)
case(
    "multiply: ConvTranspose1d, ConvTranspose2d with any stride",
    "ConvTranspose1d with groups",
    lambda: nn.ConvTranspose1d(4, 6, 2, stride=2, groups=2),
    (4, 4),
)
case(
    "multiply: ConvTranspose1d, ConvTranspose2d with any stride", "ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 4, 3)
)
case(
    "multiply: ConvTranspose1d, ConvTranspose2d with any stride",
    "ConvTranspose2d with dilation",
    lambda: nn.ConvTranspose2d(2, 2, 2, (2, 3), dilation=(2, 1)),
    (2, 3, 3),
)
case("multiply: Embedding", "Embedding", lambda: nn.Embedding(11, 4), (5,), below=11)
case("multiply: BatchNorm", "BatchNorm1d behind Linear", lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,))
case("multiply: BatchNorm", "BatchNorm2d first", lambda: nn.Sequential(nn.BatchNorm2d(3)), (3, 4, 3))

# ---- activations
case("activate: ReLU", "ReLU", lambda: nn.ReLU(), (6,))
case("activate: ReLU6, Hardtanh, clamp", "ReLU6", lambda: nn.ReLU6(), (2, 3, 4))
case("activate: ReLU6, Hardtanh, clamp", "clamp", lambda: Call(lambda x: x.clamp(-0.5, 1.25)), (6,))
case("activate: LeakyReLU, PReLU", "LeakyReLU", lambda: nn.LeakyReLU(0.125), (6,))
case("activate: LeakyReLU, PReLU", "PReLU", lambda: nn.PReLU(3), (3, 4, 2))
TABLES = "activate: tanh, sigmoid, GELU, SiLU, ELU, SELU, CELU, Mish, softplus, softsign, logsigmoid, hard sigmoid, hard swish, exp, erf"
SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid)
for layer in (*SMOOTH, nn.Hardsigmoid, nn.Hardswish):
    case(TABLES, layer.__name__, layer, (6,))
case(TABLES, "exp", lambda: Call(torch.exp), (2, 3))
case(TABLES, "erf", lambda: Call(torch.erf), (2, 3))
case("activate: Softmax", "Softmax", lambda: nn.Softmax(1), (5,))

# ---- pools
case("pool: MaxPool, padded and overlapping too", "MaxPool1d", lambda: nn.MaxPool1d(2), (3, 8))
case("pool: MaxPool, padded and overlapping too", "MaxPool2d of one row", lambda: nn.MaxPool2d((1, 2)), (3, 4, 6))
case("pool: AvgPool of any window", "AvgPool2d of one column", lambda: nn.AvgPool2d((2, 1)), (3, 4, 3))
case("pool: MaxPool, padded and overlapping too", "MaxPool2d", lambda: nn.MaxPool2d(2), (3, 4, 6))
case("pool: MaxPool, padded and overlapping too", "MaxPool2d, overlapping", lambda: nn.MaxPool2d(3, 2), (2, 5, 7))
case("pool: MaxPool, padded and overlapping too", "MaxPool2d, padded", lambda: nn.MaxPool2d(3, 2, 1), (2, 6, 5))
case(
    "pool: MaxPool, padded and overlapping too",
    "MaxPool2d, padded behind a ReLU",
    lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, padding=1)),
    (2, 4, 4),
)
case("pool: MaxPool, padded and overlapping too", "MaxPool1d in ceil mode", lambda: nn.MaxPool1d(3, 2, ceil_mode=True), (2, 8))
case("pool: AvgPool of any window", "AvgPool2d of 2 x 2", lambda: nn.AvgPool2d(2), (3, 4, 6))
case("pool: AvgPool of any window", "AvgPool1d of 4, overlapping", lambda: nn.AvgPool1d(4, 2), (3, 8))
case("pool: AvgPool of any window", "AvgPool2d of 3 x 3", lambda: nn.AvgPool2d(3), (2, 6, 6))
case("pool: AvgPool of any window", "AvgPool1d of 3, overlapping", lambda: nn.AvgPool1d(3, 2), (3, 7))
case("pool: AvgPool of any window", "AvgPool2d of 3 x 2, padded", lambda: nn.AvgPool2d((3, 2), 2, 1), (2, 5, 6))
case(
    "pool: AvgPool that leaves padding out",
    "AvgPool2d, unpadded mean",
    lambda: nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    (2, 4, 4),
    every="PQ202",
)
case("pool: AdaptiveAvgPool, AdaptiveMaxPool with even windows", "AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((2, 1)), (2, 6, 5))
case("pool: AdaptiveAvgPool, AdaptiveMaxPool with even windows", "AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(1), (3, 7))
case("pool: AdaptiveAvgPool, AdaptiveMaxPool with even windows", "AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d((2, 1)), (2, 6, 4))
case("pool: AdaptiveAvgPool with uneven windows", "AdaptiveAvgPool2d, uneven", lambda: nn.AdaptiveAvgPool2d(3), (2, 5, 5), every="PQ201")

# ---- upsampling
case("resize: Upsample, nearest", "Upsample2d", lambda: nn.Upsample(scale_factor=(2, 3), mode="nearest"), (2, 3, 2))
case("resize: Upsample, nearest", "Upsample1d", lambda: nn.Upsample(size=8), (2, 4))
case("resize: Upsample, nearest", "interpolate", lambda: Call(lambda x: F.interpolate(x, scale_factor=2.0)), (2, 3, 4))
case("resize: Upsample, bilinear", "Upsample, bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3), every="PQ201")
