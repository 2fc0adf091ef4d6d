"""What to write in place of an operator that has no exact integer meaning."""

from __future__ import annotations

from torch import nn

__all__ = ["alternative"]

_ELSE = "write it with sums, products, comparisons and moves of values, or end the compiled model before it"
_BOUNDED = "use nn.Hardtanh, or a bounded line such as F.hardtanh(0.25 * x + 0.5, 0, 1)"
_ACTIVATION = "use nn.ReLU, nn.ReLU6, or nn.LeakyReLU with a slope of 2^-n"
_NORM = "use BatchNorm, which becomes constants; this one needs statistics of every sample"
_RECURRENT = "unroll the steps into Linear layers, or keep it outside of the compiled model"
_REMEDIES = {
    "softmax": "leave it out: the largest logit stays the largest; apply it to the result outside of the compiled model",
    "sigmoid": _BOUNDED,
    "tanh": _BOUNDED,
    "prelu": "use nn.LeakyReLU with a slope of 2^-n, such as 0.125",
    **dict.fromkeys(("gelu", "silu", "elu", "selu", "celu", "mish", "softplus", "softsign", "hardswish", "hardsigmoid"), _ACTIVATION),
    **dict.fromkeys(("layernorm", "groupnorm", "instancenorm", "rmsnorm"), _NORM),
    **dict.fromkeys(("lstm", "gru", "rnn"), _RECURRENT),
    "batchnorm": "use nn.BatchNorm1d or nn.BatchNorm2d, whose statistics become constants",
    "convtranspose": "use a Conv layer; upsample outside of the compiled model",
    "upsample": "upsample outside of the compiled model",
    "interpolate": "upsample outside of the compiled model",
    "adaptiveavgpool": "use nn.AvgPool with windows of 2^n elements, or an output size of 1",
    **dict.fromkeys(("clamp", "clip", "threshold"), "use F.hardtanh(x, low, high), torch.maximum or torch.minimum"),
    **dict.fromkeys(("where", "maskedfill"), "use torch.maximum, torch.minimum or F.relu, or multiply by a value that is 0 or 1"),
    "abs": "use torch.maximum(x, -x)",
    "maxpool": "use return_indices=False",
    "conv": "use padding_mode='zeros' and at most two spatial axes",
}


def alternative(name: str, module: nn.Module | None) -> str:
    """The remedy for the operator called `name`, which is the call of `module` when it is one."""
    if module is not None and not type(module).__module__.startswith("torch."):
        return f"take {type(module).__name__} out of `leaves` so that it is traced into, or end the compiled model before it"
    plain = name.lower().replace("_", "").removeprefix("log")
    return next((text for start, text in _REMEDIES.items() if plain.startswith(start)), _ELSE)
