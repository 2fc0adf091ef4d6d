"""CompiledModel: the rewritten, trainable network. An ordinary nn.Module whose keys are the user's, plus ours under `pq`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pquant_fx.config import Config
from pquant_fx.errors import InputError, Problem, TransferError
from pquant_fx.examples import ExampleInputs
from pquant_fx.graph.copies import adopt_tree, copy_graph_module
from pquant_fx.graph.info import info, place
from pquant_fx.graph.rewriter import OWN
from pquant_fx.graph.text import fingerprint, text

if TYPE_CHECKING:
    from pquant_fx.errors import Problem as Note
    from pquant_fx.frozen import FrozenModel
    from pquant_fx.train.fit import History

__all__ = ["CompiledModel"]

Source = Literal["shape", "examples", "data"]
_SOURCES: tuple[Source, ...] = ("shape", "examples", "data")


class CompiledModel(nn.Module):
    """What `pq.compile` returns. Parameters, buffers and submodules are those of the user's model under the same names.

    `graph_module` is the graph (a second view of the same tree), `config` the configuration, `notes` what tracing decided.
    """

    graph_module: GraphModule

    def __init__(self, gm: GraphModule, config: Config, examples: ExampleInputs, notes: tuple[Note, ...] = ()) -> None:
        super().__init__()
        adopt_tree(self, gm)
        self.__dict__["graph_module"] = gm  # not registered as a child: it would give every key a prefix
        self.config = config
        self.notes = notes
        self._examples = examples
        self._shapes = {n.name: (tuple(s[1:]) if (s := info(n).shape) is not None else None) for n in gm.graph.nodes if n.op == "placeholder"}
        if not hasattr(gm, OWN):
            gm.add_module(OWN, nn.Module())
        gm.get_submodule(OWN).register_buffer("calibrated_on", torch.tensor(0))

    # ---- running
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `forward`: same arguments, same structure of results. Raises InputError (PQ409) on another shape."""
        self._check_shapes(args, kwargs)
        return self.graph_module(*args, **kwargs)

    def train(self, mode: bool = True) -> CompiledModel:
        super().train(mode)
        self.graph_module.training = mode
        return self

    def _check_shapes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The graph was specialised to the shapes of the examples (batch excepted): another one would be silently wrong."""
        if len(args) > len(self._shapes):
            raise InputError(Problem("PQ409", f"{len(args)} inputs were given", f"the model takes {', '.join(self._shapes)}"))
        for (name, expected), value in zip(self._shapes.items(), args):
            self._check_shape(name, expected, value)
        for name, value in kwargs.items():
            if name not in self._shapes:
                raise InputError(Problem("PQ409", f"the model has no input '{name}'", f"its inputs are {', '.join(self._shapes)}"))
            self._check_shape(name, self._shapes[name], value)

    def _check_shape(self, name: str, expected: tuple[int, ...] | None, value: Any) -> None:
        if isinstance(value, Tensor) and expected is not None and tuple(value.shape[1:]) != expected:
            what = f"input '{name}' has shape {tuple(value.shape)}; the model was compiled for (batch, {', '.join(map(str, expected))})"
            node = next(n for n in self.graph_module.graph.nodes if n.op == "placeholder" and n.name == name)
            raise InputError(Problem("PQ409", what, "give that shape, or compile again with an example of the new one", place(node)))

    # ---- formats
    @property
    def calibration_source(self) -> Source:
        """What the data formats rest on: a bare `shape`, the `examples` given to compile, or `data` (calibrate, fit)."""
        return _SOURCES[int(self.get_submodule(OWN).calibrated_on)]  # type: ignore[arg-type]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def calibrate(self, batches: Any, *, source: Source = "data") -> CompiledModel:
        """Set the formats of all calibrated quantizers from data; returns the model.

        batches: a tensor of samples, or an iterable of batches; a batch is a tensor, a dict by input name, a tuple with one
        tensor an input, or (x, y), of which x counts. At most `calibration.batches` of them are read.
        Raises CalibrationError: PQ305 for NaN or infinity, PQ410 for no batch; the formats then stay as they were.
        """
        from pquant_fx.quantize.calibration import calibrate
        from pquant_fx.quantize.statistics import measured_statistics
        from pquant_fx.train.data import input_batches

        read = list(input_batches(batches, self.input_names, self.config.calibration.batches))
        with measured_statistics(self.graph_module, read):
            calibrate(self.graph_module, read)
        self.get_submodule(OWN).calibrated_on.fill_(_SOURCES.index(source))  # type: ignore[operator, union-attr]
        return self

    # ---- training and freezing
    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        callbacks: Iterable[Callable[[Any], Any]] = (),
    ) -> History:
        """Train through all stages of the configuration; see `pquant_fx.train.fit.fit` for the arguments."""
        from pquant_fx.train.fit import fit

        return fit(self, train, validation, loss=loss, optimizer=optimizer, metrics=metrics, callbacks=callbacks)

    def freeze(self) -> FrozenModel:
        """The network as constants and exact types, a new object. Raises LoweringError with everything that has no exact meaning."""
        from pquant_fx.frozen import freeze

        return freeze(self)

    # ---- looking at it
    def text(self) -> str:
        """The graph, one node a line, with shapes, formats, module paths and source lines."""
        from pquant_fx.graph.analysis import analyse

        return text(self.graph_module, analyse(self.graph_module).named())

    @property
    def fingerprint(self) -> str:
        """Hash of the graph's structure: equal for every compile of the same model with the same configuration."""
        return fingerprint(self.graph_module)

    # ---- checkpoints and copies
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of the compiled model, or one of the user's float model (no key of ours in it), strictly.

        A float checkpoint replaces the weights on which formats were calibrated, so they are calibrated again on the example
        inputs. Keys that carry DistributedDataParallel's `module.` prefix are read without it.
        Raises TransferError (PQ401) with every missing, unexpected or misshapen key.
        """
        if state_dict and all(k.startswith("module.") for k in state_dict):
            state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
        is_float = not any(k.startswith(f"{OWN}.") for k in state_dict)
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            raise TransferError(Problem("PQ401", str(error), "load a checkpoint of this very network")) from error
        missing = [k for k in result.missing_keys if not (is_float and k.startswith(f"{OWN}."))]
        if strict and (missing or result.unexpected_keys):
            raise TransferError(
                [Problem("PQ401", f"the checkpoint lacks '{k}'", "load a checkpoint of this very network, or strict=False") for k in missing]
                + [Problem("PQ401", f"the model has no '{k}'", "load a checkpoint of this very network, or strict=False") for k in result.unexpected_keys]
            )
        if is_float and self.calibration_source != "shape":
            self.calibrate([tuple(self._examples.tensors.values())], source="examples")
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        gm = copy_graph_module(self.graph_module, memo)
        skip = {"graph_module", *gm.__dict__.keys() & {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}}
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in skip})
        twin.__dict__["graph_module"] = gm
        adopt_tree(twin, gm)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        adopt_tree(self.graph_module, self)  # pickling wrote the tree twice; make it one again
