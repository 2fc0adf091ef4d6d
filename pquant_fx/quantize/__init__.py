"""Quantization: the fixed-point arithmetic, the quantizer modules, and calibration.

`kernel` and `rounding` hold the arithmetic, `fixed_point` the checked function, `static` and `quantizers` the modules,
`observers` and `calibration` what sets their formats, `lsb` how fine a value of a graph is.
"""

from __future__ import annotations

from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer

__all__ = ["AccumulatorQuantizer", "CalibratedQuantizer", "DynamicQuantizer", "FixedQuantizer", "fixed_point"]
