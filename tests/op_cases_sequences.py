"""Cases: norms of every sample, products of matrices and attention, recurrent layers, gates of channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.op_cases import Call, Call2, case

T, H = (3, 4), (2, 3, 4)  # tokens, heads of tokens
SEEN = torch.ones(3, 3).tril()
NO_STREAM = {"io_stream": "PQ202"}

# ---- norms
case("normalise: LayerNorm, RMSNorm", "LayerNorm of 2^n", lambda: nn.LayerNorm(8), (8,))
case(
    "normalise: LayerNorm, RMSNorm", "LayerNorm", lambda: Call(lambda m, x: m.fc(m.norm(x)), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3)), (6,)
)
case("normalise: LayerNorm, RMSNorm", "LayerNorm of tokens", lambda: nn.LayerNorm(5, elementwise_affine=False), (4, 5))
case("normalise: LayerNorm, RMSNorm", "LayerNorm of two axes", lambda: nn.LayerNorm((3, 4)), T)
case("normalise: LayerNorm, RMSNorm", "RMSNorm", lambda: nn.RMSNorm(5), (3, 5))
case("normalise: GroupNorm, InstanceNorm", "GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 3), every="PQ201")
case("normalise: GroupNorm, InstanceNorm", "InstanceNorm", lambda: nn.InstanceNorm1d(4), (4, 3), every="PQ201")

# ---- products of matrices
case("attend: matmul with a constant", "matmul by a constant", lambda: Call(lambda m, x: x @ m.fc.weight.t(), fc=nn.Linear(4, 3)), T)
case("attend: matmul with a constant", "matmul of a constant", lambda: Call(lambda m, x: m.fc.weight @ x, fc=nn.Linear(3, 5)), T)
case("attend: matmul of values", "matmul", lambda: Call2(torch.matmul), T, (4, 2), **NO_STREAM)
case("attend: matmul of values", "matmul of heads", lambda: Call2(lambda x, y: x @ y.mT), H, H, **NO_STREAM)

# ---- attention
case(
    "attend: hand-written attention, scaled_dot_product_attention, with constant masks",
    "attention by hand",
    lambda: Call(lambda m, x: torch.softmax(m.q(x) @ x.mT / 2, -1) @ x, q=nn.Linear(4, 4)),
    T,
    **NO_STREAM,
)
case(
    "attend: hand-written attention, scaled_dot_product_attention, with constant masks",
    "attention, filled with -inf",
    lambda: Call(lambda x: torch.softmax((x @ x.mT).masked_fill(SEEN == 0, float("-inf")), -1) @ x),
    T,
    **NO_STREAM,
)
case(
    "attend: hand-written attention, scaled_dot_product_attention, with constant masks",
    "scaled_dot_product_attention",
    lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x)),
    H,
    **NO_STREAM,
)
case(
    "attend: hand-written attention, scaled_dot_product_attention, with constant masks",
    "causal attention",
    lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    T,
    **NO_STREAM,
)
case(
    "attend: MultiheadAttention, TransformerEncoderLayer",
    "MultiheadAttention",
    lambda: Call(lambda m, x: m.mha(x, x, x)[0], mha=nn.MultiheadAttention(4, 2, batch_first=True)),
    T,
    **NO_STREAM,
)
case(
    "attend: MultiheadAttention, TransformerEncoderLayer",
    "TransformerEncoderLayer",
    lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)),
    T,
    **NO_STREAM,
)
case(
    "attend: attention with a mask from data",
    "attention with a mask from data",
    lambda: Call2(lambda x, y: F.scaled_dot_product_attention(x, x, x, attn_mask=y)),
    T,
    (3, 3),
    every="PQ201",
)

# ---- recurrent layers
case("recur: LSTM, GRU, unrolled", "LSTM", lambda: Call(lambda m, x: m.cells(x)[0], cells=nn.LSTM(2, 3, batch_first=True)), (3, 2))
case(
    "recur: LSTM, GRU, unrolled",
    "LSTM in both directions",
    lambda: Call(lambda m, x: m.cells(x)[0], cells=nn.LSTM(2, 2, batch_first=True, bidirectional=True)),
    (3, 2),
)
case("recur: LSTM, GRU, unrolled", "GRU", lambda: Call(lambda m, x: m.cells(x)[1][-1], cells=nn.GRU(2, 3, batch_first=True)), (3, 2))
case("recur: RNN", "RNN", lambda: Call(lambda m, x: m.cells(x)[0], cells=nn.RNN(2, 3, batch_first=True)), (3, 2), every="PQ201")

# ---- gates
case(
    "gate: squeeze-excite",
    "squeeze-excite",
    lambda: Call(lambda m, x: x * torch.sigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(x, 1))))),
                 squeeze=nn.Conv2d(3, 2, 1), excite=nn.Conv2d(2, 3, 1)),
    (3, 4, 2),
)  # fmt: skip
