"""Configuration: a strict schema of the YAML files, presets, and rules per layer."""

from pquant_fx.config.hgq import Beta, BetaController, BetaPoint
from pquant_fx.config.interface import Budget, Calibration, InputSettings, JoinPolicy, Joins, OutputSettings
from pquant_fx.config.kinds import DataGranularity, DataQuantizer, EbopsSign, Granularity, WeightQuantizer, WeightRange
from pquant_fx.config.layer_settings import LayerSettings
from pquant_fx.config.layer_specific import DataPlace, LayerSpecific, StaticFormat
from pquant_fx.config.loading import ConfigLike, load_config, preset_names, preset_titles
from pquant_fx.config.pruning import (
    METHODS,
    ActivationPruning,
    AutoSparsePruning,
    CSPruning,
    DSTPruning,
    MagnitudePruning,
    MDMMPruning,
    PDPPruning,
    PruningParameters,
    PruningSection,
    WandaPruning,
)
from pquant_fx.config.pruning_section import ThresholdType
from pquant_fx.config.quantization import QuantizationParameters
from pquant_fx.config.root import Config, InterfaceFormat
from pquant_fx.config.rules import LayerRule
from pquant_fx.config.search import FITCompressParameters, HPOParameters
from pquant_fx.config.target import Target, TargetLayer
from pquant_fx.config.training import TrainingParameters

__all__ = [
    "METHODS",
    "ActivationPruning",
    "AutoSparsePruning",
    "Beta",
    "BetaController",
    "BetaPoint",
    "Budget",
    "CSPruning",
    "Calibration",
    "Config",
    "ConfigLike",
    "DSTPruning",
    "DataGranularity",
    "DataPlace",
    "DataQuantizer",
    "EbopsSign",
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
    "MDMMPruning",
    "MagnitudePruning",
    "OutputSettings",
    "PDPPruning",
    "PruningParameters",
    "PruningSection",
    "QuantizationParameters",
    "StaticFormat",
    "Target",
    "TargetLayer",
    "ThresholdType",
    "TrainingParameters",
    "WandaPruning",
    "WeightQuantizer",
    "WeightRange",
    "load_config",
    "preset_names",
    "preset_titles",
]
