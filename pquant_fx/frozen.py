"""FrozenModel: the finished network as constants and exact fixed-point types, and the door to every target."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from pquant_fx.compiled import CompiledModel
from pquant_fx.errors import InputError, LoweringError, Problem
from pquant_fx.frozen_onnx import OnnxTargets
from pquant_fx.frozen_rtl import RtlTargets
from pquant_fx.frozen_target import LayerTypes, hls4ml_options
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.copies import copy_graph_module
from pquant_fx.graph.dialect import Quantizer, attribute_at, module_of
from pquant_fx.graph.format_text import format_texts
from pquant_fx.graph.info import place
from pquant_fx.graph.inputs import InputSpec, bind_inputs, input_problems, not_finite
from pquant_fx.graph.proofs import Proofs, proofs_of
from pquant_fx.graph.removed_channels import removed_channels
from pquant_fx.graph.support import unsupported
from pquant_fx.graph.text import text
from pquant_fx.graph.values import output_of
from pquant_fx.lower.exact_forward import FLOAT32_BITS, compute_dtype
from pquant_fx.passes import freezing_pipeline
from pquant_fx.quantize import HGQData
from pquant_fx.quantize.protocols import Observable

if TYPE_CHECKING:
    from pquant_fx.config import Config
    from pquant_fx.estimate import Ebops
    from pquant_fx.estimate.zeros import Zeros
    from pquant_fx.lower.hls4ml.project import HlsProject
    from pquant_fx.lower.verify import VerifyReport

__all__ = ["FrozenModel", "Origin", "freeze"]

TARGETS = ("integer", "onnx", "qonnx", "hls4ml")


def freeze(compiled: CompiledModel, remove_dead_channels: bool = True) -> FrozenModel:
    """Bake parameters into constants, give every value its exact type, refuse what has none; `compiled` is not changed.

    remove_dead_channels: let what is zero for every input leave the network, which changes no result (see `FrozenModel.removed`).
    Raises LoweringError: PQ307 when formats rest on a bare shape, PQ305 for NaN in a parameter, PQ2xx and PQ303 with every
    node that has no exact fixed-point meaning.
    """
    _refuse_uncalibrated(compiled)
    gm = copy_graph_module(compiled.graph_module)
    for module in gm.modules():
        module.eval()
    _refuse_nan(gm)
    try:
        pipeline = freezing_pipeline()
        (pipeline if remove_dead_channels else pipeline.remove("remove_dead_channels"))(gm)
    except LoweringError as error:  # some constants were refused: say what else stands in the way
        known = {(p.code, p.place.node) for p in error.problems}
        raise LoweringError([*error.problems, *(p for p in unsupported(gm) if (p.code, p.place.node) not in known)]) from error
    gm.delete_all_unused_submodules()
    formats = analyse(gm)
    problems = unsupported(gm, formats=formats)
    if problems:
        raise LoweringError(problems)
    return FrozenModel(gm, formats, compiled)


def _refuse_uncalibrated(compiled: CompiledModel) -> None:
    gm = compiled.graph_module
    remedy = "call calibrate(batches) or fit(train) with real data first (on the command line: --data)"
    if compiled.calibration_source == "shape" and any(isinstance(m, Observable) for m in gm.modules()):
        raise LoweringError(Problem("PQ307", "the formats rest on a bare input shape, no data was seen", remedy))
    missing = [n for n in gm.graph.nodes if isinstance(m := module_of(gm, n), Quantizer) and not m.calibrated]
    if missing:
        raise LoweringError([Problem("PQ307", "this quantizer has no format yet", remedy, place(n)) for n in missing])
    following = [n for n in gm.graph.nodes if isinstance(m := module_of(gm, n), HGQData) and not m.is_traced]
    what, remedy = "this range is what the last training batches needed", "call calibrate(batches) with training data: it traces the ranges"
    if following:
        raise LoweringError([Problem("PQ307", what, f"{remedy} (fit does so at its end)", place(n)) for n in following])


def _refuse_nan(gm: GraphModule) -> None:
    problems, seen = [], set[str]()
    for node in gm.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = attribute_at(gm, name)
        if name not in seen and isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problems.append(Problem("PQ305", f"parameter '{name}' holds NaN or infinity", "load the last good checkpoint", place(node)))
        seen.add(name)
    if problems:
        raise LoweringError(problems)


class Origin(Protocol):
    """What a frozen model keeps of where it comes from: a compiled model, or a file."""

    @property
    def config(self) -> Config: ...
    @property
    def input_names(self) -> tuple[str, ...]: ...
    @property
    def _inputs(self) -> Mapping[str, InputSpec]: ...
    def _counting(self) -> dict[str, Any]: ...
    def _types(self) -> LayerTypes: ...


class FrozenModel(OnnxTargets, RtlTargets, nn.Module):
    """A network of integers times powers of two. Evaluation only: `train()` leaves it as it is.

    Every target computes the same bits: `forward` in torch, `integer`, and what `to_onnx`, `to_qonnx`, `to_hls4ml` write.
    `removed` tells which channels were dead and are gone, and which dead ones had to stay (`print` it).
    """

    graph_module: GraphModule

    def __init__(self, gm: GraphModule, formats: FormatMap, origin: Origin) -> None:
        super().__init__()
        self.config = origin.config
        self.input_names = origin.input_names
        self.formats = formats
        self.removed = removed_channels(gm)
        self.dtype = compute_dtype(gm, self.formats)
        self._narrow = _narrow_outputs(gm, formats)
        self.graph_module = gm.to(self.dtype)
        self._inputs = dict(origin._inputs)
        self._counting = origin._counting()
        self._types = origin._types()
        self._double: GraphModule | None = None
        self._projects: dict[str, HlsProject] = {}
        super().train(False)

    def train(self, mode: bool = True) -> FrozenModel:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `forward`, exact: float32 where 24 bits hold every sum, else float64.

        Results have the dtype of the input unless they need more bits. Raises InputError: PQ409 for another shape.
        """
        inputs = self._bound(args, kwargs)
        given = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
        gm = self._at(torch.float64 if torch.float64 in (given, self.dtype) else torch.float32)
        dtype = torch.float64 if gm is not self.graph_module else self.dtype
        with torch.no_grad():
            flat, spec = tree_flatten(gm(*(x.to(dtype) for x in inputs)))
        return tree_unflatten([v.to(given) if n in self._narrow else v for n, v in enumerate(flat)], spec)

    def integer(self, *args: Any, codes: bool = False, **kwargs: Any) -> Any:
        """The exact interpreter in integer arithmetic, in forward's structure.

        Returns real values (code * 2^-f) as float64, or with `codes=True` the int64 codes. Raises InputError (PQ305, PQ409).
        """
        from pquant_fx.lower.integer import IntegerInterpreter, real

        inputs = self._bound(args, kwargs)
        outputs = IntegerInterpreter(self.graph_module, self.formats).run(*(x.double().numpy(force=True) for x in inputs))
        return _map_codes(outputs, (lambda c, f: torch.from_numpy(c)) if codes else (lambda c, f: torch.from_numpy(real(c, f))))

    # ---- targets
    def to_hls4ml(
        self,
        output_dir: str | PathLike[str],
        backend: str | None = None,
        io_type: str | None = None,
        part: str | None = None,
        clock_period: float | None = None,
        overwrite: bool = False,
        *,
        strategy: str | None = None,
        reuse_factor: int | None = None,
        layers: Mapping[str, Any] | None = None,
        fifo_depths: str | None = None,
    ) -> HlsProject:
        """Write an hls4ml project, through the QONNX file. What is not given is as in the configuration's section `target`.

        clock_period in ns; layers: pattern of module paths or types -> {strategy, reuse_factor}, after the configuration's rules.
        A directory that we wrote may be replaced with overwrite=True, any other is refused (OutputError PQ506).
        Raises LoweringError (PQ2xx, PQ4xx) with every node that hls4ml can not compute exactly or as asked, ConfigError (PQ402,
        PQ405, PQ407) for settings that do not exist.
        """
        from pquant_fx.lower.hls4ml.convert import to_hls4ml

        given: dict[str, Any] = {"backend": backend, "io_type": io_type, "part": part, "clock_period": clock_period}
        given |= {"strategy": strategy, "reuse_factor": reuse_factor, "layers": layers, "fifo_depths": fifo_depths}
        return to_hls4ml(self.to_qonnx(), output_dir, overwrite=overwrite, **self.hls4ml_options(**given))

    def hls4ml_options(self, **given: Any) -> dict[str, Any]:
        """What `to_hls4ml` with these arguments asks of the converter: the section `target`, with its patterns as ONNX nodes."""
        return hls4ml_options(self.graph_module, self.config.target, self._types, given)

    def verify(self, x: Any, targets: tuple[str, ...] = TARGETS, io_type: str = "io_parallel", *, stress: int = 32) -> VerifyReport:
        """Run the engines on real samples and compare every output bit with torch's. Never raises on a difference, but names the
        nodes at which an engine leaves torch and searches the worst input of the first. qonnx runs in float64 (its row says so)
        where 24 bits do not hold every value.

        x: a tensor, or a tuple of tensors or a dict for several inputs; float64 is rounded to float32 first, for all engines alike.
        stress: so many samples more, made of x: ties and their neighbours, saturating and wrapping values.
        Raises InputError: PQ409 for other shapes or no sample, PQ305 for NaN or infinity; ConfigError (PQ405) for unknown names, or none.
        """
        from pquant_fx.lower.engines import verify

        inputs = self._bound((), x) if isinstance(x, dict) else self._bound(x if isinstance(x, tuple | list) else (x,), {})
        problems = not_finite(self.graph_module, inputs)
        if not all(map(len, inputs)):
            problems.append(Problem("PQ409", "there is no sample to verify with", "give at least one"))
        if problems:
            raise InputError(problems)
        inputs = [x.float() if x.is_floating_point() else x for x in inputs]  # what every engine takes
        return verify(self, inputs, (targets,) if isinstance(targets, str) else targets, io_type, stress)

    def ebops(self) -> Ebops:
        """Exact effective bit operations of one sample, in total and node by node: those of the compiled model, see there, without what
        its dead channels counted.
        """
        from pquant_fx.estimate import exact_ebops

        return exact_ebops(self.graph_module, self.formats, **self._counting)

    def zeros(self, strategy: str = "latency", reuse_factor: int | Mapping[str, int] = 1) -> Zeros:
        """How many weights are 0 and how many multipliers that saves, layer by layer; `.warnings` names layers where it saves none.

        strategy: latency, resource or resource_unrolled; reuse_factor: for all layers, or by module path. Raises ConfigError.
        """
        from pquant_fx.estimate.zeros import zeros_of

        return zeros_of(self.graph_module, strategy, reuse_factor)

    def proofs(self) -> Proofs:
        """What holds for every input that the circuit can see: which quantizers never overflow or round, how wide sums get."""
        return proofs_of(self.graph_module, self.formats)

    def text(self) -> str:
        """The graph, one node a line, with shapes, formats, module paths and source lines."""
        return text(self.graph_module, format_texts(self.graph_module, self.formats))

    # ---- inside
    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        given = {name: _tensor(value) for name, value in bind_inputs(self.graph_module, args, kwargs).items()}
        problems = input_problems(self.graph_module, self._inputs, given, convertible=True)
        if problems:
            raise InputError(problems)
        return list(given.values())

    def _at(self, dtype: torch.dtype) -> GraphModule:
        if dtype == self.dtype:
            return self.graph_module
        if self._double is None:
            self.__dict__["_double"] = copy_graph_module(self.graph_module).to(dtype)
        assert self._double is not None
        return self._double

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        keep = {k: v for k, v in self.__dict__.items() if k not in nn.Module().__dict__}
        twin.__dict__.update({k: copy.copy(v) for k, v in keep.items()})
        twin.graph_module = copy_graph_module(self.graph_module, memo)
        twin.formats = analyse(twin.graph_module)
        twin.__dict__["_double"], twin.__dict__["_projects"] = None, {}
        return twin


def _narrow_outputs(gm: GraphModule, formats: FormatMap) -> set[int]:
    """Positions of the outputs that float32 holds, whatever type their sums are computed in."""
    returned = output_of(gm).args[0]
    known = [formats.intervals.get(v) if isinstance(v, Node) else None for v in tree_flatten(returned)[0]]
    return {n for n, interval in enumerate(known) if interval is not None and interval.bits <= FLOAT32_BITS}


def _tensor(value: Any) -> Any:
    """Numpy arrays and nested lists of numbers as tensors; anything else as it is, to be refused by name."""
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _map_codes(outputs: Any, leaf: Any) -> Any:
    """Apply `leaf(codes, f)` inside forward's structure; a leaf is what the interpreter marks as one."""
    from pquant_fx.lower.integer import Codes

    if isinstance(outputs, Codes):
        return leaf(outputs.codes, outputs.f)
    if isinstance(outputs, dict):
        return {k: _map_codes(v, leaf) for k, v in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*(_map_codes(v, leaf) for v in outputs))
    if isinstance(outputs, tuple | list):
        return type(outputs)(_map_codes(v, leaf) for v in outputs)
    return outputs
