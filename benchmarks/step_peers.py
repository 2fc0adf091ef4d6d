"""The peers of the training-step benchmark: the same network in Brevitas and in PQuantML, 8 bits for weights and data.

Each entry takes the float network and an input and returns (model, extra loss or None); it raises ImportError where its library
is not installed. Brevitas quantizes weights, inputs and the results of ReLUs (its biases stay float); PQuantML converts the
network with its own `add_compression_layers`: fixed point without pruning, fixed point with DST, and HGQ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PEERS"]

Peer = Callable[[nn.Module, Tensor], tuple[nn.Module, Callable[[], Tensor] | None]]


def brevitas(net: nn.Module, x: Tensor) -> tuple[nn.Module, None]:
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFixedPoint, Int8WeightPerTensorFixedPoint, Uint8ActPerTensorFixedPoint

    def weighted(m: nn.Module) -> nn.Module | None:
        if isinstance(m, nn.Linear):
            return qnn.QuantLinear(m.in_features, m.out_features, m.bias is not None, weight_quant=Int8WeightPerTensorFixedPoint)
        if isinstance(m, nn.Conv2d):
            geometry: dict[str, Any] = {"stride": m.stride, "padding": m.padding, "bias": m.bias is not None}
            return qnn.QuantConv2d(m.in_channels, m.out_channels, m.kernel_size, weight_quant=Int8WeightPerTensorFixedPoint, **geometry)
        return qnn.QuantReLU(act_quant=Uint8ActPerTensorFixedPoint) if isinstance(m, nn.ReLU) else None

    for name, module in [(n, weighted(m)) for n, m in net.named_modules()]:
        if module is not None:
            net.set_submodule(name, module)
    return nn.Sequential(qnn.QuantIdentity(act_quant=Int8ActPerTensorFixedPoint), net), None


def pquant_fixed(net: nn.Module, x: Tensor) -> tuple[nn.Module, None]:
    return _pquant(net, x, hgq=False)[0], None


def pquant_dst(net: nn.Module, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    return _pquant(net, x, hgq=False, method="dst")


def pquant_hgq(net: nn.Module, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    return _pquant(net, x, hgq=True)


def _pquant(net: nn.Module, x: Tensor, hgq: bool, method: str | None = None) -> tuple[nn.Module, Callable[[], Tensor]]:
    os.environ["KERAS_BACKEND"] = "torch"
    import pquant
    from pquant.core.torch.layers import get_model_losses, post_pretrain_functions

    config = pquant.pdp_config() if method is None else getattr(pquant, f"{method}_config")()
    config.pruning_parameters.enable_pruning = method is not None
    quantization = config.quantization_parameters
    quantization.enable_quantization = True
    quantization.use_high_granularity_quantization = hgq
    quantization.granularity = "per_weight" if hgq else "per_tensor"
    quantization.default_weight_integer_bits = quantization.default_data_integer_bits = 1.0
    quantization.default_weight_fractional_bits = quantization.default_data_fractional_bits = 6.0
    model = pquant.add_compression_layers(net, config, x.shape)
    model.train()
    model(x)  # builds the quantizers: the optimizer must come after
    post_pretrain_functions(model, config)
    return model, lambda: get_model_losses(model, torch.zeros(()))


PEERS: dict[str, Peer] = {
    "Brevitas, 8 bits": brevitas,
    "PQuantML, 8 bits": pquant_fixed,
    "PQuantML, 8 bits, DST": pquant_dst,
    "PQuantML, hgq": pquant_hgq,
}
