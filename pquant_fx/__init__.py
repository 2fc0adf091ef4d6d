"""pquant_fx: from a PyTorch model to bit-exact FPGA firmware. This file is the whole public API.

Names are imported when they are first used, so that `pquant-fx --help` answers before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pquant_fx.api import CheckReport, check, compile, template
    from pquant_fx.checkpoints import load
    from pquant_fx.compiled import CompiledModel
    from pquant_fx.config import Config, load_config
    from pquant_fx.errors import (
        CalibrationError,
        ConfigError,
        ExtraMissingError,
        InputError,
        LoweringError,
        OutputError,
        PassError,
        Place,
        PQuantError,
        PQuantWarning,
        Problem,
        TraceError,
        TrainingError,
        TransferError,
    )
    from pquant_fx.estimate import Ebops
    from pquant_fx.formats import FixedFormat
    from pquant_fx.frozen import FrozenModel
    from pquant_fx.graph.dialect import Mask, Quantizer
    from pquant_fx.graph.observers import Diff, Dump, Timing
    from pquant_fx.graph.passes import Pass, Pipeline, rewrite
    from pquant_fx.graph.rewriter import Rewriter
    from pquant_fx.imported import from_qonnx
    from pquant_fx.lower.hls4ml.reports import SynthesisReports, read_reports
    from pquant_fx.lower.verify import VerifyReport
    from pquant_fx.passes import default_pipeline
    from pquant_fx.quantize import (
        AccumulatorQuantizer,
        CalibratedQuantizer,
        DynamicQuantizer,
        FixedQuantizer,
        HGQData,
        HGQWeight,
        LearnedQuantizer,
        LSQData,
        LSQWeight,
        PACTData,
        TQTData,
        TQTWeight,
        TrackedQuantizer,
        fixed_point,
    )
    from pquant_fx.train.checkpoint import resume, save
    from pquant_fx.train.functions import get_model_losses, train_model
    from pquant_fx.train.groups import param_groups
    from pquant_fx.train.history import History
    from pquant_fx.train.huggingface import huggingface_callback
    from pquant_fx.train.lightning import lightning_callback
    from pquant_fx.train.one_shot import prune_by_wanda
    from pquant_fx.train.p_norm_decay import p_norm_decay
    from pquant_fx.train.session import session

__version__ = "0.1.0"

_ERRORS = (
    "CalibrationError ConfigError ExtraMissingError InputError LoweringError OutputError PassError Place PQuantError PQuantWarning "
    "Problem TraceError TrainingError TransferError"
)
_QUANTIZERS = (
    "AccumulatorQuantizer CalibratedQuantizer DynamicQuantizer FixedQuantizer HGQData HGQWeight LSQData LSQWeight LearnedQuantizer "
    "PACTData TQTData TQTWeight TrackedQuantizer fixed_point"
)
_HOME = {
    "api": "CheckReport check compile template",
    "checkpoints": "load",
    "compiled": "CompiledModel",
    "config": "Config load_config",
    "errors": _ERRORS,
    "estimate": "Ebops",
    "formats": "FixedFormat",
    "frozen": "FrozenModel",
    "graph.dialect": "Mask Quantizer",
    "graph.observers": "Diff Dump Timing",
    "graph.passes": "Pass Pipeline rewrite",
    "graph.rewriter": "Rewriter",
    "imported": "from_qonnx",
    "lower.hls4ml.reports": "SynthesisReports read_reports",
    "lower.verify": "VerifyReport",
    "passes": "default_pipeline",
    "quantize": _QUANTIZERS,
    "train.checkpoint": "resume save",
    "train.functions": "get_model_losses train_model",
    "train.groups": "param_groups",
    "train.history": "History",
    "train.huggingface": "huggingface_callback",
    "train.lightning": "lightning_callback",
    "train.one_shot": "prune_by_wanda",
    "train.p_norm_decay": "p_norm_decay",
    "train.session": "session",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "AccumulatorQuantizer",
    "CalibratedQuantizer",
    "CalibrationError",
    "CheckReport",
    "CompiledModel",
    "Config",
    "ConfigError",
    "Diff",
    "Dump",
    "DynamicQuantizer",
    "Ebops",
    "ExtraMissingError",
    "FixedFormat",
    "FixedQuantizer",
    "FrozenModel",
    "HGQData",
    "HGQWeight",
    "History",
    "InputError",
    "LSQData",
    "LSQWeight",
    "LearnedQuantizer",
    "LoweringError",
    "Mask",
    "OutputError",
    "PACTData",
    "PQuantError",
    "PQuantWarning",
    "Pass",
    "PassError",
    "Pipeline",
    "Place",
    "Problem",
    "Quantizer",
    "Rewriter",
    "SynthesisReports",
    "TQTData",
    "TQTWeight",
    "Timing",
    "TraceError",
    "TrackedQuantizer",
    "TrainingError",
    "TransferError",
    "VerifyReport",
    "check",
    "compile",
    "default_pipeline",
    "fixed_point",
    "from_qonnx",
    "get_model_losses",
    "huggingface_callback",
    "lightning_callback",
    "load",
    "load_config",
    "p_norm_decay",
    "param_groups",
    "prune_by_wanda",
    "read_reports",
    "resume",
    "rewrite",
    "save",
    "session",
    "template",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pquant_fx' has no attribute '{name}'")
    value = getattr(import_module(f"pquant_fx.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
