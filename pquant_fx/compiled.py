"""CompiledModel: the rewritten, trainable network. An ordinary nn.Module whose keys are the user's, plus ours under `pq`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pquant_fx.config import Config
from pquant_fx.errors import InputError, LoweringError, Problem, TransferError
from pquant_fx.example_inputs import ExampleInputs
from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.copies import adopt_tree, copy_graph_module
from pquant_fx.graph.fusion import fused, statistics_of
from pquant_fx.graph.inputs import bind_inputs, input_problems, input_specs
from pquant_fx.graph.rewriter import OWN
from pquant_fx.graph.synchronisation import follow_synchronised
from pquant_fx.graph.text import fingerprint, text

if TYPE_CHECKING:
    from pquant_fx.errors import Problem as Note
    from pquant_fx.estimate import Ebops, EbopsPlan
    from pquant_fx.frozen import FrozenModel
    from pquant_fx.frozen_target import LayerTypes
    from pquant_fx.train.events import EpochEnd
    from pquant_fx.train.history import History

__all__ = ["CompiledModel"]

Source = Literal["shape", "examples", "data"]
_SOURCES: tuple[Source, ...] = ("shape", "examples", "data")


class CompiledModel(nn.Module):
    """What `pq.compile` returns. Parameters, buffers and submodules are those of the user's model under the same names.

    `graph_module` is the graph (a second view of the same tree), `config` the configuration, `notes` what tracing decided.
    """

    graph_module: GraphModule
    _running: tuple[str, list[tuple[ActivationStatistics, bool]], GraphModule] | None

    def __init__(self, gm: GraphModule, config: Config, examples: ExampleInputs, notes: tuple[Note, ...] = ()) -> None:
        super().__init__()
        adopt_tree(self, gm)
        self.__dict__["graph_module"] = gm  # not registered as a child: it would give every key a prefix
        self.__dict__["_running"] = None
        self.config = config
        self.notes = notes
        self._examples = examples
        self._inputs = input_specs(gm)
        if not hasattr(gm, OWN):
            gm.add_module(OWN, nn.Module())
        gm.get_submodule(OWN).register_buffer("calibrated_on", torch.tensor(0))

    # ---- running
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `forward`: same arguments and results. Raises InputError (PQ409) for other shapes, types or names."""
        self._check_inputs(args, kwargs)
        run = self.graph_module if torch.compiler.is_compiling() else self._fast  # a compiler fuses by itself
        return run(*args, **kwargs)

    @property
    def _fast(self) -> GraphModule:
        """The graph as it is run, made anew when a pass has edited it, or statistics of activations are wanted or no longer."""
        code = self.graph_module.code
        if self._running is None or self._running[0] is not code or any(s.is_collecting != was for s, was in self._running[1]):
            watched = [(s, s.is_collecting) for s in statistics_of(self.graph_module)]
            self.__dict__["_running"] = (code, watched, fused(self.graph_module))
        assert self._running is not None
        return self._running[2]

    def train(self, mode: bool = True) -> CompiledModel:
        """As of any module. BatchNorm that became SyncBatchNorm since (`convert_sync_batchnorm`) is taken note of here."""
        super().train(mode)
        self.graph_module.training = mode
        follow_synchronised(self.graph_module)
        return self

    def _check_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The graph was specialised to the shapes of the examples (batch excepted): another one would be silently wrong."""
        if len(args) == len(self._inputs) and not kwargs and self._usual(args):
            return
        problems = input_problems(self.graph_module, self._inputs, bind_inputs(self.graph_module, args, kwargs))
        if problems:
            raise InputError(problems)

    def _usual(self, args: tuple[Any, ...]) -> bool:
        """The quick answer for what training feeds; anything else is looked at closely."""
        for spec, x in zip(self._inputs.values(), args):
            if not isinstance(x, Tensor) or x.dtype is not torch.float32 or spec.dtype != "float32" or tuple(x.shape[1:]) != spec.shape:
                return False
        return len({len(x) for x in args}) == 1

    # ---- formats
    @property
    def calibration_source(self) -> Source:
        """What the data formats rest on: a bare `shape`, the `examples` given to compile, or `data` (calibrate, fit)."""
        return _SOURCES[int(self.get_submodule(OWN).calibrated_on)]  # type: ignore[arg-type]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    @property
    def example_inputs(self) -> ExampleInputs:
        """What the model was compiled with; a loaded one has the first of them."""
        return self._examples

    def calibrate(self, batches: Any, *, source: Source = "data") -> CompiledModel:
        """Set the formats of all calibrated quantizers from data; returns the model.

        batches: a tensor of samples, or an iterable of batches; a batch is a tensor, a dict by input name, a tuple with one
        tensor an input, or (x, y), of which x counts. At most `calibration.batches` of them are read.
        Raises CalibrationError: PQ305 for NaN or infinity, PQ410 for no batch; InputError (PQ409) for inputs of other shapes or
        types. The formats then stay as they were.
        """
        from pquant_fx.quantize.calibration import calibrate
        from pquant_fx.quantize.statistics import measured_statistics
        from pquant_fx.train.data import input_batches

        read = list(input_batches(batches, self.input_names, self.config.calibration.batches))
        self._check_batches(read)
        with measured_statistics(self.graph_module, read):
            calibrate(self.graph_module, read)
        self.get_submodule(OWN).calibrated_on.fill_(_SOURCES.index(source))  # type: ignore[operator]
        return self

    def _check_batches(self, batches: list[tuple[Any, ...]]) -> None:
        for batch in batches:
            given = bind_inputs(self.graph_module, batch, {})
            problems = input_problems(self.graph_module, self._inputs, given, "calibration")
            if problems:
                raise InputError(problems)

    # ---- training and freezing
    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | None = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        callbacks: Sequence[Callable[[EpochEnd], None]] = (),
        checkpoint: str | PathLike[str] | None = None,
        resume: bool = False,
    ) -> History:
        """Train for the epochs that the configuration names; returns one row per epoch, which `print` shows as a table.

        train, validation: a DataLoader, an iterable of (x, y), or a pair of tensors. loss: fn(output, target) -> 0-d tensor; default:
        cross entropy for integer targets, else mean squared error. optimizer: one over this model's parameters, or a function
        that makes one of them; default: Adam with `learning_rate`. metrics: name -> fn(outputs, targets) -> number, measured on
        the validation data. callbacks: called with each epoch's row. checkpoint: a file that is written after each epoch;
        with resume=True a training that was stopped goes on from it. More in `help(pquant_fx.train.fit.fit)`.
        Raises InputError (PQ409) for other shapes or types, TrainingError: PQ410 data, PQ411 a loss that is not finite, PQ412 use.

        Example: model.fit((x, y), validation=(x_test, y_test))
        """
        from pquant_fx.train.fit import fit

        return fit(
            self,
            train,
            validation,
            loss=loss,
            optimizer=optimizer,
            metrics=metrics,
            callbacks=callbacks,
            checkpoint=checkpoint,
            resume=resume,
        )

    def freeze(self, remove_dead_channels: bool = True) -> FrozenModel:
        """The network as constants and exact types, a new object. Raises LoweringError with everything that has no exact meaning.

        remove_dead_channels: let channels that are zero for every input leave the network, with the weights that read them; no
        result changes. `frozen.removed` tells what went. False keeps every layer's shape.
        """
        from pquant_fx.frozen import freeze

        return freeze(self, remove_dead_channels)

    # ---- looking at it
    def text(self) -> str:
        """The graph, one node a line, with shapes, formats, module paths and source lines."""
        from pquant_fx.graph.analysis import analyse
        from pquant_fx.graph.format_text import format_texts

        return text(self.graph_module, format_texts(self.graph_module, analyse(self.graph_module)))

    def ebops(self) -> Ebops:
        """Exact effective bit operations of one sample, in total and node by node, as the frozen network will have them; channels that
        freezing would remove count.

        Signs count as `ebops_sign` says, streamed layers by their `n_parallel`. Raises LoweringError for what has no exact format.
        """
        from pquant_fx.estimate import exact_ebops
        from pquant_fx.graph.tables import Tabulated

        if any(isinstance(m, Tabulated) for m in self.graph_module.modules()):
            with suppress(LoweringError):  # not ready to be frozen: counted as it stands
                return self.freeze(remove_dead_channels=False).ebops()  # what follows from a table is known once it is one
        return exact_ebops(self.graph_module, **self._counting())

    def ebops_plan(self) -> EbopsPlan:
        """The differentiable surrogate of `ebops`, prepared to be computed in every training step."""
        from pquant_fx.estimate import EbopsPlan

        return EbopsPlan(self.graph_module, **self._counting())

    def _counting(self) -> dict[str, Any]:
        from pquant_fx.passes.settings import parallelism

        return {"sign": self.config.quantization_parameters.ebops_sign, "parallel": parallelism(self.config, self.graph_module)}

    def _types(self) -> LayerTypes:
        from pquant_fx.frozen_target import layer_types

        return layer_types(self.graph_module)

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
                [
                    Problem("PQ401", f"the checkpoint lacks '{k}'", "load a checkpoint of this very network, or strict=False")
                    for k in missing
                ]
                + [
                    Problem("PQ401", f"the model has no '{k}'", "load a checkpoint of this very network, or strict=False")
                    for k in result.unexpected_keys
                ]
            )
        if is_float and self.calibration_source != "shape":
            self.calibrate([tuple(self._examples.tensors.values())], source="examples")
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        gm = copy_graph_module(self.graph_module, memo)
        skip = {"graph_module", "_running", *gm.__dict__.keys() & {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}}
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in skip})
        twin.__dict__ |= {"graph_module": gm, "_running": None}
        adopt_tree(twin, gm)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        adopt_tree(self.graph_module, self)  # pickling wrote the tree twice; make it one again
