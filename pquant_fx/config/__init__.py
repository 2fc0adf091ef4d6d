"""Configuration: a strict schema of the YAML files, presets, and rules per layer."""

from pquant_fx.config.interface import Budget, Calibration, InputSettings, JoinPolicy, Joins, OutputSettings, Target
from pquant_fx.config.loading import ConfigLike, load_config, preset_names
from pquant_fx.config.pruning import MagnitudePruning, PruningParameters
from pquant_fx.config.quantization import Granularity, LayerSpecific, QuantizationParameters, StaticFormat
from pquant_fx.config.root import Config, InterfaceFormat
from pquant_fx.config.rules import LayerRule, LayerSettings
from pquant_fx.config.search import FITCompressParameters, HPOParameters
from pquant_fx.config.training import TrainingParameters

__all__ = [
    "Budget",
    "Calibration",
    "Config",
    "ConfigLike",
    "FITCompressParameters",
    "Granularity",
    "HPOParameters",
    "InputSettings",
    "InterfaceFormat",
    "JoinPolicy",
    "Joins",
    "LayerRule",
    "LayerSettings",
    "LayerSpecific",
    "MagnitudePruning",
    "OutputSettings",
    "PruningParameters",
    "QuantizationParameters",
    "StaticFormat",
    "Target",
    "TrainingParameters",
    "load_config",
    "preset_names",
]
