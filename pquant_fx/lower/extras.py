"""Packages that only some targets need: found missing at the call, with the command that installs them."""

from __future__ import annotations

from importlib import import_module

from pquant_fx.errors import ExtraMissingError, Problem

__all__ = ["require"]

_PACKAGES = {"onnx": "onnx>=1.21,<1.22", "onnxruntime": "onnxruntime>=1.31", "qonnx": "qonnx>=1.0"}


def require(module: str) -> None:
    """Raises ExtraMissingError (PQ503) with the pip command when `module` can not be imported."""
    package = module.partition(".")[0]
    try:
        import_module(module)
    except ImportError as error:
        what = f"the package {package} is not installed or does not load ({error})"
        raise ExtraMissingError(Problem("PQ503", what, f"pip install '{_PACKAGES[package]}'")) from error
