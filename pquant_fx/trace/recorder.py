"""The recorder: runs a model's `forward` once on values that carry shapes, and writes down every operation as a node."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pquant_fx.graph.dialect import Mask, Quantizer
from pquant_fx.graph.info import NodeInfo, definition_line, set_info
from pquant_fx.graph.shapes import DataDependentShape, Shapes, map_structure
from pquant_fx.trace.inplace import Write, find_write
from pquant_fx.trace.ledger import Ledger, dtype_name
from pquant_fx.trace.lines import Lines
from pquant_fx.trace.refusals import Stop
from pquant_fx.trace.values import Sketch, Value

__all__ = ["Recorder"]

_READS_VALUES = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist", "numpy"),
    *("is_nonzero", "equal", "allclose", "_assert"),
}
_RANDOM = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "poisson", "multinomial"),
    *("rand_like", "randn_like", "randint_like", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"),
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Recorder(Ledger, TorchFunctionMode):
    """One trace of `root` in its present mode. After `run`: `graph`, `constants`, and the findings in `refusals`.

    Every torch call made by the user's code arrives in `__torch_function__`; every module call in `call_module`.
    """

    def __init__(self, root: nn.Module, shapes: Shapes, batches: tuple[int, int], leaves: tuple[type[nn.Module], ...]) -> None:
        TorchFunctionMode.__init__(self)
        Ledger.__init__(self, root, shapes, batches, Lines(Recorder.run.__code__))
        self.leaves = leaves
        self._calls: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._autocast = torch._C._is_any_autocast_enabled()

    # ---- running
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[..., Any]) -> Any:
        """Run the model's forward; returns the output structure as fx arguments, None when there were problems."""
        try:
            with self:
                result = self.nodes(call(self.root, *args, **kwargs))
                map_structure(self._check_output, result)
                if not _any(Node, result):
                    self.refusals.no_tensor(definition_line(self.root.forward))
                return result
        except Stop:
            return None
        except Exception as error:
            self.refusals.failed(error, self.leaves)
            return None

    def _check_output(self, x: Any) -> None:
        if not isinstance(x, (Node, bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))):
            self.refusals.output(x)

    def placeholder(self, name: str, low: Tensor, high: Tensor, device: torch.device) -> Value:
        node = self.graph.placeholder(name)
        set_info(node, NodeInfo("", 1, definition_line(self.root.forward), tuple(low.shape), dtype_name(low)))
        return Value.make(Sketch(node, low, high, device))

    @contextmanager
    def shadows(self) -> Iterator[None]:
        """While tracing, `module.weight` gives the recorded value: an instance attribute hides the parameter."""
        placed: list[tuple[dict[str, Any], str]] = []
        try:
            for module in self.root.modules():
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and id(tensor) in self.owned:
                        module.__dict__[name] = self.owned[id(tensor)]
                        placed.append((module.__dict__, name))
            yield
        finally:
            for attributes, name in placed:
                attributes.pop(name, None)

    # ---- modules
    def is_active(self) -> bool:
        return threading.get_ident() == self._thread and torch._C._is_torch_function_mode_enabled()

    def call_module(self, module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of any module inside the model: a leaf becomes one node, others are traced through."""
        path = self.paths.get(id(module))
        if path is None:
            if next(module.parameters(), None) is not None:
                self.refusals.unregistered(module, self.place())
            return call(module, *args, **kwargs)
        if module is self.root:
            return call(module, *args, **kwargs)
        self._calls[path] += 1
        self.stack.append((path, self._calls[path]))
        try:
            if not self._is_leaf(module):
                return call(module, *args, **kwargs)
            return self._leaf(module, path, args, kwargs)
        except Exception:
            self.refusals.passing(self.place())
            raise
        finally:
            self.stack.pop()

    def _is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, (*self.leaves, Quantizer, Mask, torch.jit.ScriptModule)):
            return True
        home = type(module).__module__
        return home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)

    def _leaf(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self.shapes.run_module(module, args, kwargs)

        writes = bool(module.__dict__.get("was_inplace")) and bool(args) and isinstance(args[0], Tensor)
        with torch._C.DisableTorchFunction():
            result = self._record("call_module", path, run, args, kwargs)
            return self._written(Write(args[0], module, args, kwargs), result) if writes else result

    # ---- functions
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if threading.get_ident() != self._thread or not (name in _RANDOM or self.concerns(args) or self.concerns(kwargs)):
            return func(*args, **kwargs)
        if name in ("__get__", "__set__") and hasattr(func, "__self__"):
            return self._property(func.__self__.__name__, name, args)
        if name in _READS_VALUES:
            return self.refusals.value_read(name, self.place(), args)
        if name == "__repr__" or name == "__format__":
            return f"<traced tensor of shape {tuple(self.witnesses(args[0], 0).shape)}>"
        if name == "requires_grad_":
            return args[0]
        if name in ("to", "cpu", "cuda", "type") and isinstance(args[0], Tensor):
            args, kwargs, func = self._move(name, func, args, kwargs)
        if func is torch.Tensor.__pow__:
            func = torch.pow  # torch.fx finds no name for the method
        write = find_write(func, args, kwargs)
        if write is None:
            return self.call(func, *args, **kwargs)
        if write.function is None:
            return self.refusals.written(name, self.place(), write.target)
        return self._written(write, self.call(write.function, *write.args, **write.kwargs))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record a call of a torch function."""
        return self._record("call_function", function, lambda a, k: self.shapes.run(function, a, k), args, kwargs)

    def _property(self, name: str, kind: str, args: tuple[Any, ...]) -> Any:
        if kind == "__set__":
            return self.refusals.written(f"{name} = ...", self.place(), args[0])
        if name == "grad":
            return None
        record = self.record_of(args[0])
        if name in ("dtype", "device"):
            found = record.low.dtype if name == "dtype" else record.device
            self.reads[found] = (self.node_of(args[0]), name)
            return found
        if name.startswith("is_") and name[3:] in ("cpu", "cuda", "meta", "xpu", "mps"):
            return record.device.type == name[3:]
        if name == "requires_grad":
            return bool(record.parameter) and self.attribute(args[0]).requires_grad
        return self._record("call_function", getattr, lambda a, k: self.shapes.run(getattr, a, k), (args[0], name), {})

    def _move(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        """`x.cuda()`, `x.to("cpu")`, `x.type("torch.FloatTensor")` as `x.to(device or dtype)`."""
        if name in ("cpu", "cuda"):
            return (args[0], torch.device(name)), {}, torch.Tensor.to
        if name == "type" and len(args) > 1 and not isinstance(args[1], torch.dtype):
            return (args[0], torch.empty(0).type(args[1]).dtype), {}, torch.Tensor.to
        args = tuple(torch.device(a) if isinstance(a, str) else a for a in args)
        if isinstance(kwargs.get("device"), str):
            kwargs = {**kwargs, "device": torch.device(kwargs["device"])}
        return args, kwargs, func

    # ---- recording
    def _record(self, kind: str, target: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [self.record_of(x) for x in self.tensors((args, kwargs))]
        for record in inputs:
            if record.seen < record.memory.writes:
                self.refusals.stale(record.memory.line, self.place())
                record.seen = record.memory.writes
        versions = [(r.low, r.low._version) for r in inputs]
        try:
            low = run(self.witnesses(args, 0), self.witnesses(kwargs, 0))
            high = run(self.witnesses(args, 1), self.witnesses(kwargs, 1))
        except DataDependentShape as error:
            raise self.refusals.data_dependent(str(error), self.place()) from None
        if target not in (F.batch_norm, F.instance_norm) and any(t._version != version for t, version in versions):
            self.refusals.written(getattr(target, "__name__", str(target)), self.place(), None)
        if kind == "call_function":
            for x in self.tensors(args):
                record = self.record_of(x)
                if low is record.low and high is record.high:
                    return x
        return self._wrap(low, high, kind, target, args, kwargs, inputs)

    def _wrap(self, low: Any, high: Any, kind: str, target: Any, args: Any, kwargs: Any, inputs: list[Sketch]) -> Any:
        positional, named = self.nodes(args), self.nodes(kwargs)
        if kind == "call_function" and not _any(Tensor, low):
            return self.number(low, high, lambda: self.node(kind, target, positional, named), positional)
        if torch._C._is_any_autocast_enabled() != self._autocast:
            self.refusals.autocast(self.place())
        node = self.node(kind, target, positional, named)
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.device)]
        device = next(iter((*given, *(r.device for r in inputs), torch.device("cpu"))))
        return self.result(low, high, node, device, inputs)

    def _written(self, write: Write, result: Any) -> Any:
        """`write.target` now has the value of `result`; its views, and what it is a view of, are stale."""
        record, new = self.record_of(write.target), self.record_of(result)
        if record.parameter is not None:
            self.refusals.buffer_written(record.parameter, self.place())
        if record.low.dtype != new.low.dtype:
            self.refusals.written(f"a {dtype_name(new.low)} value into a {dtype_name(record.low)} tensor", self.place(), write.target)
        record.node, record.low, record.high = new.node, new.low, new.high
        record.memory.writes += 1
        record.memory.line = self.lines.here()
        record.seen = record.memory.writes
        return write.target

    def attribute_set(self, module: nn.Module, name: str, value: Any) -> None:
        path = self.paths.get(id(module))
        if path is None or name == "training":
            return
        if name in module._parameters or name in module._buffers:
            self.refusals.buffer_written(f"{path}.{name}" if path else name, self.place())
        else:
            self.refusals.attribute_written(path, name, self.place())


def _any(kind: type, value: Any) -> bool:
    found: list[bool] = []
    map_structure(lambda x: found.append(isinstance(x, kind)), value)
    return any(found)
