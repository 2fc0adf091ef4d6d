"""Sections `fitcompress_parameters` and `hpo_parameters`: searches over compressed networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pquant_fx.config.section import Amount, Fraction, Number, Pending, Section, Whole

__all__ = ["FITCompressParameters", "HPOParameters", "HyperparameterSearch", "PruningSchedule", "Sampler"]

Samplers = Literal[
    "GridSampler",
    "RandomSampler",
    "TPESampler",
    "CmaEsSampler",
    "GPSampler",
    "NSGAIISampler",
    "NSGAIIISampler",
    "QMCSampler",
    "BruteForceSampler",
]


class PruningSchedule(Section):
    """Densities 10^start ... 10^end in `steps` steps."""

    start: Number = 0.0
    end: Number = -3.0
    steps: Annotated[Whole, Field(ge=1)] = 40


class FITCompressParameters(Section):
    """FITCompress (Zandonati et al. 2023): a search over widths and sparsities."""

    enable_fitcompress: Annotated[bool, Pending(False, "leave it at false and give widths with default_weight_bits or 'layers'")] = False
    optimize_quantization: bool = True
    quantization_schedule: tuple[Amount, ...] = (7.0, 4.0, 3.0, 2.0)
    pruning_schedule: PruningSchedule = PruningSchedule()
    compression_goal: Fraction = 0.10
    optimize_pruning: bool = False
    greedy_astar: bool = True
    approximate: bool = True
    f_lambda: Amount = 1.0


class Sampler(Section):
    """An Optuna sampler by name, with its arguments."""

    type: Samplers = "TPESampler"
    params: dict[str, JsonValue] = {}


class HyperparameterSearch(Section):
    """What is searched: `numerical` name -> [low, high] or [low, high, step]; `categorical` name -> choices."""

    numerical: dict[str, Annotated[tuple[Number, ...], Field(min_length=2, max_length=3)]] = {}
    categorical: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]] = {}


class HPOParameters(Section):
    """Hyper-parameter optimisation: what a search, which is a call of its own, would read. `compile` and `fit` do not."""

    experiment_name: str = "experiment_1"
    model_name: str = "example_model"
    sampler: Sampler = Sampler()
    num_trials: Annotated[Whole, Field(ge=0)] = 0
    hyperparameter_search: HyperparameterSearch = HyperparameterSearch()
