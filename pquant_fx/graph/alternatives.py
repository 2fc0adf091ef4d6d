"""What to write in place of an operator that has no exact integer meaning."""

from __future__ import annotations

from torch import nn

__all__ = ["alternative"]

_ELSE = "write it with sums, products, comparisons and moves of values, or end the compiled model before it"
_ACTIVATION = "use one with a table (tanh, sigmoid, GELU, SiLU, ELU, softplus, exp, ...), or nn.ReLU, nn.LeakyReLU, nn.PReLU"
_NORM = "use BatchNorm, which becomes constants, or nn.LayerNorm or nn.RMSNorm over the last axes"
_RECURRENT = "use nn.LSTM or nn.GRU with batch_first=True, or unroll the steps into Linear layers"
_ATTENTION = "use nn.MultiheadAttention or nn.TransformerEncoderLayer with batch_first=True"
_REMEDIES = {
    "softmax": "take F.softmax over one axis of a sample, or leave it out: the largest logit stays the largest",
    **dict.fromkeys(("rrelu", "hardshrink", "softshrink", "tanhshrink", "glu", "sin", "cos", "sqrt", "log"), _ACTIVATION),
    **dict.fromkeys(("layernorm", "groupnorm", "instancenorm", "rmsnorm"), _NORM),
    **dict.fromkeys(("lstm", "gru", "rnn"), _RECURRENT),
    **dict.fromkeys(("multihead", "scaleddotproduct", "transformer"), _ATTENTION),
    "batchnorm": "use nn.BatchNorm1d or nn.BatchNorm2d, whose statistics become constants",
    "convtranspose": "use padding_mode='zeros' and at most two spatial axes",
    **dict.fromkeys(("upsample", "interpolate"), "use mode='nearest' with a whole factor along one or two spatial axes"),
    "embedding": "use it without max_norm, scale_grad_by_freq and sparse",
    **dict.fromkeys(("adaptiveavgpool", "adaptivemaxpool"), "use an output size that divides the input's, or a window of its own"),
    **dict.fromkeys(("clamp", "clip", "threshold"), "give both bounds as numbers, as F.hardtanh(x, low, high) does, or use torch.maximum"),
    **dict.fromkeys(("where", "maskedfill"), "use torch.maximum, torch.minimum or F.relu, or multiply by a value that is 0 or 1"),
    "abs": "use torch.maximum(x, -x)",
    **dict.fromkeys(("pad", "reflectionpad", "replicationpad", "circularpad", "constantpad"), "pad with zeros"),
    "maxpool": "use return_indices=False",
    "conv": "use padding_mode='zeros' and at most two spatial axes",
}


def alternative(name: str, module: nn.Module | None) -> str:
    """The remedy for the operator called `name`, which is the call of `module` when it is one."""
    if module is not None and not type(module).__module__.startswith("torch."):
        return f"take {type(module).__name__} out of `leaves` so that it is traced into, or end the compiled model before it"
    plain = name.lower().replace("_", "").removeprefix("log")
    return next((text for start, text in _REMEDIES.items() if plain.startswith(start)), _ELSE)
