"""Cases: arithmetic of values and constants, joins, reductions over axes, moves."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.op_cases import Call, Call2, case

V, M = (6,), (3, 4, 2)  # a vector and a map

# ---- arithmetic
case("arithmetic: add, sub", "add", lambda: Call2(lambda x, y: x + y), V, V)
case("arithmetic: add, sub", "sub of maps", lambda: Call2(lambda x, y: x - y), M, M)
case("arithmetic: add, sub", "add a number", lambda: Call(lambda x: 1.5 - x + 0.3), V)
case("arithmetic: add, sub", "add a vector", lambda: Call(lambda m, x: x + m.layer.bias, layer=nn.Linear(1, 6)), V)
case("arithmetic: mul, div by constants, neg", "mul", lambda: Call2(lambda x, y: x * y), V, V)
case("arithmetic: mul, div by constants, neg", "mul of maps", lambda: Call2(lambda x, y: x * y), M, M)
case("arithmetic: mul, div by constants, neg", "mul by a number", lambda: Call(lambda x: x * 0.3), M)
case("arithmetic: mul, div by constants, neg", "mul by a vector", lambda: Call(lambda m, x: x * m.layer.bias, layer=nn.Linear(1, 6)), V)
case("arithmetic: mul, div by constants, neg", "div by a number", lambda: Call(lambda x: x / 3), V)
case("arithmetic: mul, div by constants, neg", "neg", lambda: Call(lambda x: -x), V)
case("arithmetic: all of them with broadcasting", "add, broadcast", lambda: Call2(lambda x, y: x + y), (3, 4), (3, 1))
case("arithmetic: all of them with broadcasting", "gate of channels", lambda: Call2(lambda x, y: x * y), M, (3, 1, 1))
case("arithmetic: maximum, minimum", "maximum", lambda: Call2(torch.maximum), V, V)
case("arithmetic: maximum, minimum", "minimum of maps", lambda: Call2(torch.minimum), M, M)
case(
    "arithmetic: maximum, minimum",
    "maximum with a constant",
    lambda: Call(lambda m, x: torch.maximum(x, m.layer.bias), layer=nn.Linear(1, 6)),
    V,
)

# ---- joins
case("join: cat", "cat of vectors", lambda: Call2(lambda x, y: torch.cat([x, y, x * 2], 1)), V, (4,))
case("join: cat", "cat of channels", lambda: Call2(lambda x, y: torch.cat([x, y, -x, y], 1)), M, (2, 4, 2))
case("join: cat", "cat of rows", lambda: Call2(lambda x, y: torch.cat([x, y], 2)), M, (3, 1, 2))
case("join: cat", "cat of columns", lambda: Call2(lambda x, y: torch.cat([x, y], 3)), M, (3, 4, 1))
case("join: stack", "stack", lambda: Call2(lambda x, y: torch.stack([x, y], 1)), V, V)
case("join: stack", "stack, last axis", lambda: Call2(lambda x, y: torch.stack([x, y], -1)), (3, 2), (3, 2))

# ---- reductions
case("reduce: mean, sum over any axes", "mean of the spatial axes", lambda: Call(lambda x: x.mean((2, 3))), (3, 3, 2))
case("reduce: mean, sum over any axes", "mean of 2^n", lambda: Call(lambda x: x.mean((2, 3))), M)
case("reduce: mean, sum over any axes", "mean of channels", lambda: Call(lambda x: x.mean(1)), M)
case("reduce: mean, sum over any axes", "mean of 2^n rows", lambda: Call(lambda x: x.mean(2)), M)
case("reduce: mean, sum over any axes", "mean of rows", lambda: Call(lambda x: x.mean(2, keepdim=True)), (3, 5, 2))
case("reduce: mean, sum over any axes", "mean of a vector", lambda: Call(lambda x: x.mean(1, keepdim=True)), V)
case("reduce: mean, sum over any axes", "mean over particles", lambda: Call(lambda x: x.mean(1)), (6, 3))
case("reduce: mean, sum over any axes", "sum over particles", lambda: Call(lambda x: x.sum(1)), (6, 3))
case("reduce: mean, sum over any axes", "sum of everything", lambda: Call(lambda x: x.sum((1, 2, 3), keepdim=True)), M)
case("reduce: mean, sum over any axes", "sum of rows", lambda: Call(lambda x: x.sum(2)), M)
case("reduce: amax over any axes", "amax of the spatial axes", lambda: Call(lambda x: x.amax((2, 3))), M)
case("reduce: amax over any axes", "amax of channels", lambda: Call(lambda x: x.amax(1)), M)
case("reduce: amax over any axes", "amax over particles", lambda: Call(lambda x: x.amax(1)), (6, 3))

# ---- moves
case("move: flatten, reshape", "flatten", lambda: nn.Flatten(), M)
case("move: flatten, reshape", "reshape", lambda: Call(lambda x: x.reshape(-1, 2, 3)), V)
case("move: flatten, reshape", "squeeze", lambda: Call(lambda x: x.squeeze(2)), (3, 1, 4))
case("move: flatten, reshape", "unsqueeze", lambda: Call(lambda x: x.unsqueeze(1)), (3, 4))
case("move: permute, transpose", "permute", lambda: Call(lambda x: x.permute(0, 3, 1, 2)), M)
case("move: permute, transpose", "transpose", lambda: Call(lambda x: x.transpose(1, 2)), (3, 5))
case("move: permute, transpose", "flatten a transposed map", lambda: Call(lambda x: F.relu(x.transpose(2, 3)).flatten(1)), M)
case("move: slices, split, chunk", "slice of a vector", lambda: Call(lambda x: x[:, 1:5:2]), V)
case("move: slices, split, chunk", "slice of a map", lambda: Call(lambda x: x[:, 1:, ::2, -1:]), M)
case("move: slices, split, chunk", "select", lambda: Call(lambda x: x[:, 1]), M)
case("move: slices, split, chunk", "chunk", lambda: Call(lambda x: x.chunk(2, 1)[1]), V)
case("move: slices, split, chunk", "split", lambda: Call(lambda x: torch.split(x, [1, 3], 2)[1]), M)
case("move: slices, split, chunk", "unbind", lambda: Call(lambda x: x.unbind(2)[1]), M)
case("move: pad with zeros", "pad of a map", lambda: Call(lambda x: F.pad(x, (1, 2, 0, 1))), M)
case("move: pad with zeros", "pad of a vector", lambda: Call(lambda x: F.pad(x, (2, 1))), V)
case("move: pad with zeros", "pad of channels", lambda: Call(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))), M)
case("move: pad with zeros", "pad and crop", lambda: Call(lambda x: F.pad(x, (1, -1))), (3, 4))
case("move: pad with anything else", "pad, reflected", lambda: nn.ReflectionPad1d(1), (3, 4), every="PQ201")
case("move: pad with anything else", "pad with ones", lambda: nn.ConstantPad1d(1, 1.0), (3, 4), every="PQ201")
