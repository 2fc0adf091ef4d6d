"""QONNX files as other tools write them, node by node, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

QUANT_DOMAIN = "qonnx.custom_op.general"
Array = npt.NDArray[Any]


class ForeignFile:
    """Writes a file: `constant` and `quant` and `node` return tensor names, `done` the model."""

    def __init__(self, opset: int = 13) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, *shape: int) -> str:
        from onnx import TensorProto, helper

        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def constant(self, name: str, values: npt.ArrayLike, dtype: str = "float32") -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """One node; the name of its first output, the others end in _1, _2, ..."""
        from onnx import helper

        name = name or f"{operator}_{len(self.nodes)}"
        made = [name + "_out"] + [f"{name}_out_{n}" for n in range(1, outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name, domain=domain, **attributes))
        return made[0]

    def quant(
        self,
        x: str,
        bits: float,
        scale: npt.ArrayLike,
        signed: int = 1,
        narrow: int = 0,
        mode: str = "ROUND",
        zero: float = 0.0,
        name: str = "",
    ) -> str:
        name = name or f"Quant_{len(self.nodes)}"
        parts = [self.constant(f"{name}.{what}", v) for what, v in (("scale", scale), ("zero", zero), ("bits", bits))]
        return self.node("Quant", x, *parts, name=name, domain=QUANT_DOMAIN, signed=signed, narrow=narrow, rounding_mode=mode)

    def done(self, *outputs: str, shapes: Sequence[Sequence[int]] | None = None) -> Any:
        from onnx import TensorProto, helper

        made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None if shapes is None else shapes[n]) for n, o in enumerate(outputs)]
        graph = helper.make_graph(self.nodes, "foreign", self.inputs, made, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(QUANT_DOMAIN, 1)]
        return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def run_cleaned(model: Any, *inputs: Array) -> list[Array]:
    """What qonnx computes once its own clean-up has given every tensor a shape. Inputs as long as the file's batch."""
    import warnings

    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    from pquant_fx.lower.onnx.run import run_qonnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned = cleanup_model(ModelWrapper(model, make_deepcopy=True)).model
    cleaned.ir_version = min(cleaned.ir_version, 10)
    return run_qonnx(cleaned, list(inputs))
