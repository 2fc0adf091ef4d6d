"""The whole configuration: `Config`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from pquant_fx.config.explain import explain
from pquant_fx.config.hgq import BetaController
from pquant_fx.config.ignored import set_aside, why_ignored
from pquant_fx.config.interface import Budget, Calibration, InputSettings, JoinPolicy, Joins, OutputSettings
from pquant_fx.config.layer_settings import LayerSettings
from pquant_fx.config.notes import learns_bits, notes, pending
from pquant_fx.config.patterns import Known, Pattern, unmatched
from pquant_fx.config.pruning import MagnitudePruning, PruningParameters
from pquant_fx.config.quantization import QuantizationParameters
from pquant_fx.config.rule_book import RuleBook
from pquant_fx.config.rules import LayerRule, Update, specific_update
from pquant_fx.config.search import FITCompressParameters, HPOParameters
from pquant_fx.config.section import Finding, Section, refuse
from pquant_fx.config.target import Target
from pquant_fx.config.training import TrainingParameters
from pquant_fx.config.yaml_text import to_text
from pquant_fx.errors import Problem
from pquant_fx.formats import FixedFormat, OverflowMode, RoundingMode

__all__ = ["Config", "InterfaceFormat"]

InterfaceFormat = tuple[FixedFormat, RoundingMode, OverflowMode]


class Config(Section):
    """Everything that `compile` and `fit` are told, immutable. Read it with `load_config`.

    The first five sections and their keys are the paper's (tables 4 and 5 of the PQuantML paper), the others are ours.
    Pruning is off unless `pruning_parameters` is given. `ignored` lists the keys of PQuantML's own files that were read but
    have no effect; `notes` says why. Raises ConfigError listing every unknown key (PQ406), invalid value (PQ407) and setting
    of a feature that this version does not have (PQ408); those that PQuantML's files name are `pending` until `compile`.
    """

    training_parameters: TrainingParameters = TrainingParameters.model_construct()
    pruning_parameters: PruningParameters = MagnitudePruning(enable_pruning=False)
    quantization_parameters: QuantizationParameters = QuantizationParameters()
    fitcompress_parameters: FITCompressParameters = FITCompressParameters()
    hpo_parameters: HPOParameters = HPOParameters()
    inputs: dict[str, InputSettings] = {}
    outputs: dict[str, OutputSettings] = {}
    layers: dict[str, LayerRule] = {}
    joins: Joins = Joins()
    calibration: Calibration = Calibration()
    budget: Budget = Budget()
    target: Target = Target()
    ignored: tuple[str, ...] | None = None

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise explain(error, type(self)) from None

    def __eq__(self, other: object) -> bool:
        # a dict's equality ignores order, but the last matching rule wins
        same = super().__eq__(other)
        return same and isinstance(other, Config) and self._order() == other._order()

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        """A section without content stands for its defaults; a pruning section without a method is magnitude pruning."""
        if not isinstance(data, dict):
            return data
        made, found = set_aside({key: value for key, value in data.items() if value is not None})
        if found:
            made["ignored"] = sorted({*found, *made.get("ignored", ())})
        pruning = made.get("pruning_parameters")
        if isinstance(pruning, dict):
            if pruning:
                made["pruning_parameters"] = {"pruning_method": "magnitude", **pruning}
            else:
                del made["pruning_parameters"]
        return made

    @field_validator("inputs", "outputs", "layers", mode="before")
    @classmethod
    def _empty_entries(cls, data: Any) -> Any:
        """`layers: {conv1: }` is a rule that sets nothing; indices of outputs may be numbers."""
        if not isinstance(data, dict):
            return data
        return {str(key) if isinstance(key, int) else key: {} if value is None else value for key, value in data.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found: list[Finding] = []
        for path in self.ignored or ():
            if why_ignored(path) is None:
                found.append(("PQ407", "ignored", f"'{path}' is no key that is known to have no effect", "leave it out"))
        if self.budget.ebops is not None:
            found += self._budget_conflicts()
        if found:
            raise refuse(*found)
        return self

    def _budget_conflicts(self) -> list[Finding]:
        found: list[Finding] = []
        if not self.learns_bits:
            remedy = "begin with preset: hgq_budget, or set quantization_parameters.use_hgq: true"
            found.append(("PQ407", "budget.ebops", "nothing learns its bits, so nothing can bring EBOPs down to it", remedy))
        beta = self.quantization_parameters.hgq_beta
        if isinstance(beta, (tuple, BetaController)):
            what = f"a {'schedule' if isinstance(beta, tuple) else 'controller'} contradicts budget.ebops, which sets beta itself"
            found.append(("PQ407", "quantization_parameters.hgq_beta", what, "keep one of the two; a number is where beta begins"))
        return found

    def _order(self) -> list[list[str]]:
        return [list(self.layers), list(self.quantization_parameters.layer_specific), list(self.joins.layers), list(self.target.layers)]

    @cached_property
    def _book(self) -> RuleBook:
        rules: list[tuple[str, Update]] = []
        rules += [(text, specific_update(rule)) for text, rule in self.quantization_parameters.layer_specific.items()]
        rules += [(text, {"prune": False}) for text in self.pruning_parameters.disable_pruning_for_layers]
        rules += [(text, rule.update()) for text, rule in self.layers.items()]
        return RuleBook(rules)

    @cached_property
    def _defaults(self) -> LayerSettings:
        q = self.quantization_parameters
        return LayerSettings(
            weight_bits=q.weight_bits,
            weight_format=q.weight_format,
            data_bits=q.data_bits,
            data_format=q.data_format,
            weight_rounding=q.round_mode,
            weight_overflow=q.overflow_mode_parameters,
            data_rounding=q.round_mode,
            data_overflow=q.overflow_mode_data,
            granularity=q.granularity,
            quantize=q.enable_quantization,
            prune=self.pruning_parameters.enable_pruning,
            pruning=self.pruning_parameters if self.pruning_parameters.enable_pruning else None,
            weight_quantizer=q.weight_kind,
            data_quantizer=q.data_kind,
            data_granularity=q.data_granularity,
            weight_range=q.weight_range,
            quantize_input=q.quantize_input,
            quantize_output=q.quantize_output,
            relu_multiplier=q.use_relu_multiplier,
            real_tanh=q.use_real_tanh,
        )

    @property
    def learns_bits(self) -> bool:
        """Whether any place is asked to learn its bits (HGQ)."""
        return learns_bits(self)

    @property
    def notes(self) -> tuple[Problem, ...]:
        """What has no effect or another one than it seems (severity "info")."""
        return tuple(notes(self))

    @property
    def pending(self) -> tuple[Problem, ...]:
        """Settings of PQuantML's files whose features this version does not have (PQ408); `compile` refuses them."""
        return tuple(pending(self))

    def settings_for(self, path: str, kind: str = "", type_name: str = "", site: int = 1) -> LayerSettings:
        """What holds at one place: the defaults, then `layer_specific`, `disable_pruning_for_layers` and `layers` in order.

        path: module path, or the node's name where no module stands behind it; type_name: `Conv2d`, or `relu` for a function;
        site: call site, counted from 1; kind: the operator's kind in the dialect, of which only "weighted" has weights to prune;
        "input" or "output" for an interface of the network, whose format under `inputs` or `outputs` overrules the rules (path
        is then its name there); "" when not known. The switches enable_quantization and enable_pruning overrule everything.
        """
        found = self._book.apply(self._defaults, path, type_name, site)
        declared = self.input_format(path) if kind == "input" else self.output_format(path) if kind == "output" else None
        changes: dict[str, Any] = {}
        if declared is not None:
            made, rounding, overflow = declared
            changes = {"data_format": made, "data_bits": made.width, "data_rounding": rounding, "data_overflow": overflow, "quantize": True}
        if not self.quantization_parameters.enable_quantization:
            changes["quantize"] = False
        if not self.pruning_parameters.enable_pruning or kind not in ("", "weighted"):
            changes |= {"prune": False, "sparsity": None}
        return replace(found, **changes) if changes else found

    def input_format(self, name: str) -> InterfaceFormat | None:
        """The fixed format of the input `name` of `forward`, with its modes; None when it is calibrated."""
        return _format(self.inputs.get(name))

    def output_format(self, name: str, position: int | None = None) -> InterfaceFormat | None:
        """The fixed format of an output, found by its name or its position from 0; None when the output stays exact."""
        return _format(self.outputs.get(name)) or _format(self.outputs.get(str(position)))

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes under `inputs`, without batch."""
        return {name: entry.shape for name, entry in self.inputs.items() if entry.shape is not None}

    def join_policy(self, path: str, type_name: str = "", site: int = 1) -> JoinPolicy:
        """What holds where branches meet; the last matching pattern of `joins.layers` wins."""
        found = [policy for text, policy in self.joins.layers.items() if Pattern.parse(text).matches(path, type_name, site)]
        return found[-1] if found else self.joins.policy

    def unmatched_rules(self, known: Iterable[Known]) -> tuple[Problem, ...]:
        """A problem (PQ402) for each pattern that matches none of the `known` (path, type name, call site)."""
        places = list(known)
        return (
            *unmatched("layers", self.layers, places),
            *unmatched("quantization_parameters.layer_specific", self.quantization_parameters.layer_specific, places),
            *unmatched("pruning_parameters.disable_pruning_for_layers", self.pruning_parameters.disable_pruning_for_layers, places),
            *unmatched("joins.layers", self.joins.layers, places),
            *unmatched("target.layers", self.target.layers, places),
        )

    def unmatched_interfaces(self, inputs: Iterable[str], outputs: Iterable[str] = ()) -> tuple[Problem, ...]:
        """A problem (PQ402) for each name under `inputs` or `outputs` that the network does not have.

        An output answers to its name and to its index, counted from 0.
        """
        names = list(outputs)
        ends = [*names, *(str(index) for index in range(len(names)))]
        return (
            *unmatched("inputs", self.inputs, [(name, "", 1) for name in inputs]),
            *unmatched("outputs", self.outputs, [(name, "", 1) for name in ends]),
        )

    def to_dict(self, *, given_only: bool = False) -> dict[str, Any]:
        """All settings as plain data, or only those that were given; what is not set (null) is left out."""
        made: dict[str, Any] = _plain(self, given_only)
        return made

    def to_yaml(self) -> str:
        """All settings as YAML; `load_config` of that text gives an equal config. The same config gives the same text."""
        return to_text(self.to_dict())


def _format(entry: InputSettings | OutputSettings | None) -> InterfaceFormat | None:
    return FixedFormat.parse(entry.format) if entry is not None and entry.format is not None else None


def _plain(value: Any, given_only: bool) -> Any:
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if not given_only or name in value.model_fields_set]
        fields = {name: _plain(getattr(value, name), given_only) for name in names if getattr(value, name) is not None}
        return fields | {key: _plain(extra, given_only) for key, extra in (value.model_extra or {}).items()}
    if isinstance(value, dict):
        return {key: _plain(item, given_only) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, given_only) for item in value]
    return value
