"""What the network is compiled for: the section `target`, with a rule for each layer that wants its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pquant_fx.config.explain import explain
from pquant_fx.config.patterns import Known, Pattern, unmatched
from pquant_fx.config.section import Finding, Number, Section, Whole, not_yet, refuse
from pquant_fx.errors import ConfigError

__all__ = ["Target", "TargetLayer"]

Size = Annotated[Whole, Field(ge=1)]
Strategy = Annotated[
    Literal["latency", "resource", "resource_unrolled", "distributed_arithmetic"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]


class TargetLayer(Section):
    """How one layer multiplies; what is not set is as for the whole network."""

    strategy: Strategy | None = None
    reuse_factor: Size | None = None


class Target(Section):
    """What the network is compiled for. part: None is the backend's own default. `clock_period` in nanoseconds.

    strategy: how hls4ml multiplies. `latency`: a multiplier for every weight, unrolled (`reuse_factor` of them share one);
    `resource`: weights in memory, `reuse_factor` of them share a multiplier; `resource_unrolled`: the same with constants;
    `distributed_arithmetic`: shifts and adds (Sun et al. 2025), package da4ml. fifo_depths (io_stream): `static` computes what
    joins of branches need, `whole` keeps hls4ml's FIFOs of a whole image. layers: pattern -> strategy, reuse_factor.
    """

    name: Annotated[Literal["hls4ml", "qonnx", "onnx", "rtl"], not_yet("rtl", remedy="use 'hls4ml'")] = "hls4ml"
    backend: Annotated[Literal["Vitis", "Vivado", "Quartus", "oneAPI", "Catapult", "Libero"], not_yet("Libero", remedy="use 'Vitis'")] = (
        "Vitis"
    )
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"
    part: str | None = None
    clock_period: Annotated[Number, Field(gt=0)] = 5.0
    strategy: Strategy = "latency"
    reuse_factor: Size = 1
    fifo_depths: Literal["static", "whole"] = "static"
    layers: dict[str, TargetLayer] = {}

    @field_validator("layers", mode="before")
    @classmethod
    def _empty_rules(cls, data: Any) -> Any:
        """`layers: {fc: }` is a rule that sets nothing."""
        return {str(key): {} if value is None else value for key, value in data.items()} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _no_shared_adders(self) -> Self:
        found: list[Finding] = []
        rules = [("reuse_factor", self.strategy, self.reuse_factor)]
        for name, one in self.layers.items():
            rules.append((f"layers.{name}.reuse_factor", one.strategy or self.strategy, one.reuse_factor or self.reuse_factor))
        for key, strategy, reuse in rules:
            if strategy == "distributed_arithmetic" and reuse != 1:
                found.append(("PQ407", key, f"{reuse}: distributed_arithmetic shares no multipliers, it has none", "set it to 1"))
        if found:
            raise refuse(*found)
        return self

    def overruled(self, layers: Mapping[str, Any] | None = None, **settings: Any) -> Target:
        """The same section with these settings in place of its own; `layers` come after its own rules. None: not given.

        Raises ConfigError (PQ406, PQ407, PQ408) like a configuration that holds them.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        rules = {**self.layers, **(layers or {})}
        try:
            return Target.model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **given, "layers": rules})
        except ValidationError as error:
            raise explain(error, Target) from None

    def layer_settings(self, path: str, type_name: str = "", site: int = 1) -> dict[str, Any] | None:
        """{strategy, reuse_factor} of one place; None where no rule matches it. The last rule that sets something wins."""
        found = [rule for text, rule in self.layers.items() if Pattern.parse(text).matches(path, type_name, site)]
        if not found:
            return None
        made: dict[str, Any] = {"strategy": self.strategy, "reuse_factor": self.reuse_factor}
        for rule in found:
            made |= {name: value for name in made if (value := getattr(rule, name)) is not None}
        return made

    def require_known(self, known: Iterable[Known]) -> None:
        """Raises ConfigError (PQ402) for each rule that matches none of the `known` (path, type name, call site)."""
        problems = unmatched("target.layers", self.layers, list(known))
        if problems:
            raise ConfigError(problems)
