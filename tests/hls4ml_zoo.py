"""Small QONNX files for the hls4ml importer's tests, and an evaluator of such files that shares no code with the importer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

Array = npt.NDArray[np.float64]
QONNX = "qonnx.custom_op.general"
OWN = "pquant_fx.lower.qonnx_ops"


class File:
    """Builds a QONNX file node by node; every method returns the name of the tensor it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.random = np.random.default_rng(seed)

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append((name, shape))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def codes(self, *shape: int, f: int = 6, top: int = 31) -> Array:
        return self.random.integers(-top, top + 1, shape) / 2.0**f

    def node(self, op: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def quant(self, x: str, name: str, f: Any, bits: int, *, signed: int = 1, narrow: int = 0, mode: str = "FLOOR") -> str:
        inputs = [x, self.constant(2.0 ** -np.asarray(f, float)), self.constant(0.0), self.constant(float(bits))]
        return self.node("Quant", inputs, name, QONNX, signed=signed, narrow=narrow, rounding_mode=mode)

    def half_up(self, x: str, name: str, f: int, bits: int, *, signed: int = 1, narrow: int = 0, guard: bool = False) -> str:
        """RND as our emitter writes it: with a guard quantizer when x is on no known grid."""
        x = self.quant(x, f"{name}/floor", f + 1, bits + 1, signed=signed) if guard else x
        x = self.node("Add", [x, self.constant(2.0 ** -(f + 1))], f"{name}/half")
        return self.quant(x, name, f, bits, signed=signed, narrow=narrow)

    def fixed(self, x: str, name: str, k: Any, i: Any, f: Any, rounding: str, overflow: str) -> str:
        inputs = [x, self.constant(k), self.constant(i), self.constant(f)]
        return self.node("FixedPoint", inputs, name, OWN, rounding=rounding, overflow=overflow)

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", [x, self.constant(self.codes(inputs, outputs))], f"{name}/matmul")
        return self.node("Add", [product, self.constant(self.codes(outputs, f=8))], name)

    def conv(
        self, x: str, name: str, inputs: int, outputs: int, *kernel: int, pad: int = 0, stride: int = 1, group: int = 1, dilation: int = 1
    ) -> str:
        weight = self.quant(self.constant(self.codes(outputs, inputs // group, *kernel)), f"{name}.weight_quantizer", 6, 6, mode="ROUND")
        half = len(kernel)
        return self.node(
            "Conv", [x, weight, self.constant(self.codes(outputs, f=8))], name, kernel_shape=kernel, pads=[pad] * 2 * half,
            strides=[stride] * half, group=group, dilations=[dilation] * half,
        )  # fmt: skip

    def pool(self, x: str, name: str, op: str, *kernel: int, stride: int | None = None, pad: int = 0) -> str:
        strides = [stride] * len(kernel) if stride else list(kernel)
        more = {"count_include_pad": 1} if op == "AveragePool" else {}
        return self.node(op, [x], name, kernel_shape=kernel, strides=strides, pads=[pad] * 2 * len(kernel), **more)

    def reshape(self, x: str, name: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.constant([-1, *shape], np.int64)], name)

    def model(self, *outputs: str) -> onnx.ModelProto:
        made = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]) for name, shape in self.inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        domains = [helper.make_opsetid(d, v) for d, v in (("", 17), (QONNX, 1), (OWN, 1))]
        return helper.make_model(made, opset_imports=domains, ir_version=10)


def evaluate(model: onnx.ModelProto, *inputs: Array) -> list[Array]:
    """The file's outputs on a batch, every operation in float64."""
    values: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values = {name: value if value.dtype == np.int64 else value.astype(np.float64) for name, value in values.items()}
    values.update({i.name: np.asarray(x, np.float64) for i, x in zip(model.graph.input, inputs, strict=True)})
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values[node.output[0]] = _OPERATORS[node.op_type](attributes, *(values[name] for name in node.input))
    return [values[o.name] for o in model.graph.output]


_ROUND: dict[str, Callable[[Array], Array]] = {
    "FLOOR": np.floor,
    "TRN": np.floor,
    "ROUND": np.rint,
    "RND_CONV": np.rint,
    "DOWN": np.trunc,
    "TRN_ZERO": np.trunc,
    "RND": lambda s: np.floor(s) + (s - np.floor(s) >= 0.5),
    "RND_MIN_INF": lambda s: np.floor(s) + (s - np.floor(s) > 0.5),
    "HALF_UP": lambda s: np.sign(s) * (np.floor(np.abs(s)) + (np.abs(s) - np.floor(np.abs(s)) >= 0.5)),
    "HALF_DOWN": lambda s: np.sign(s) * (np.floor(np.abs(s)) + (np.abs(s) - np.floor(np.abs(s)) > 0.5)),
}
_ROUND["RND_INF"], _ROUND["RND_ZERO"] = _ROUND["HALF_UP"], _ROUND["HALF_DOWN"]


def _quant(a: dict[str, Any], x: Array, scale: Array, zero: Array, bits: Array) -> Array:
    high = 2.0 ** (bits - a["signed"]) - 1
    low = -a["signed"] * (high + 1 - a["narrow"])
    return np.clip(_ROUND[a["rounding_mode"].decode()](x / scale), low, high) * scale


def _fixed(a: dict[str, Any], x: Array, k: Array, i: Array, f: Array) -> Array:
    """Every mode in units of the lsb, straight from the tables of AMD UG1399."""
    n = _ROUND[a["rounding"].decode()](x * 2.0**f)
    size = 2.0 ** (i + f)
    low, high = -k * size, size - 1
    mode = a["overflow"].decode()
    wrapped = np.mod(n - low, size * (1 + k)) + low
    results = {"SAT": np.clip(n, low, high), "SAT_SYM": np.clip(n, -k * high, high), "WRAP": wrapped}
    results["SAT_ZERO"] = np.where((n < low) | (n > high), 0, n)
    turn = np.mod(n + size, 4 * size)
    results["WRAP_SM"] = np.where(turn < 2 * size, turn - size, 3 * size - 1 - turn)
    return np.where(k + i + f <= 0, 0.0, results[mode] * 2.0**-f)


def _conv(a: dict[str, Any], x: Array, w: Array, b: Array) -> Array:
    convolution = functional.conv1d if x.ndim == 3 else functional.conv2d
    pads = a["pads"][: x.ndim - 2]
    args = (tuple(a["strides"]), tuple(pads), tuple(a["dilations"]), a["group"])
    return convolution(*map(torch.from_numpy, (x.copy(), w.copy(), b.copy())), *args).numpy()


def _pooled(maximum: bool) -> Callable[..., Array]:
    def run(a: dict[str, Any], x: Array) -> Array:
        half = x.ndim - 2
        padding = [(0, 0), (0, 0), *zip(a["pads"][:half], a["pads"][half:], strict=True)]
        x = np.pad(x, padding, constant_values=-np.inf if maximum else 0)
        windows = np.lib.stride_tricks.sliding_window_view(x, a["kernel_shape"], axis=tuple(range(2, x.ndim)))
        windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in a["strides"]))]
        axes = tuple(range(-half, 0))
        return windows.max(axes) if maximum else windows.mean(axes)

    return run


def _slice(a: dict[str, Any], x: Array, starts: Any, ends: Any, axes: Any, steps: Any) -> Array:
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Quant": _quant,
    "FixedPoint": _fixed,
    "Conv": _conv,
    "MatMul": lambda a, x, w: x @ w,
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Neg": lambda a, x: -x,
    "Max": lambda a, x, y: np.maximum(x, y),
    "Min": lambda a, x, y: np.minimum(x, y),
    "Clip": lambda a, x, low, high: np.clip(x, low, high),
    "Relu": lambda a, x: np.maximum(x, 0),
    "LeakyRelu": lambda a, x: np.where(x < 0, a["alpha"] * x, x),
    "Identity": lambda a, x: x,
    "Reshape": lambda a, x, shape: x.reshape(len(x), *shape[1:]),
    "Transpose": lambda a, x: x.transpose(a["perm"]),
    "Concat": lambda a, *x: np.concatenate(x, a["axis"]),
    "Slice": _slice,
    "Pad": lambda a, x, pads: np.pad(x, list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))),
    "MaxPool": _pooled(True),
    "AveragePool": _pooled(False),
    "ReduceMean": lambda a, x: x.mean(tuple(a["axes"]), keepdims=bool(a["keepdims"])),
    "ReduceSum": lambda a, x, axes: x.sum(tuple(axes), keepdims=bool(a["keepdims"])),
}
