"""The certificate of a bundle: what is proven about the network, what made it, and the hash of every file, tensor and vector.

    certificate.json: {"format", "title", "versions", "graph", "proofs": {...}, "files": {...}, "tensors": {...}, "golden": {...}}

Proofs are facts of interval arithmetic over every input that the circuit can see, not observations. The hashes are there to
find what was changed, by accident or otherwise; they are no signature.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule

from pquant_fx.errors import InputError, Problem
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.proofs import proofs_of
from pquant_fx.graph.text import fingerprint

__all__ = ["NAME", "certificate", "changes", "read_certificate"]

NAME = "certificate.json"
_FORMAT = "pquant_fx certificate 1"
_PACKAGES = ("pquant_fx", "torch", "numpy", "onnx", "onnxruntime", "qonnx", "hls4ml")
_MODELS = ("qonnx.onnx", "plain.onnx", "qcdq.onnx")


def certificate(folder: Path, title: str, gm: GraphModule, formats: FormatMap) -> bytes:
    """The certificate of the files in `folder` as they are now; the same bytes for the same files, packages and network."""
    made = {
        "format": _FORMAT,
        "title": title,
        "versions": _versions(),
        "graph": fingerprint(gm),
        "proofs": proofs_of(gm, formats).data(),
        "files": {str(p.relative_to(folder)): _hash(p.read_bytes()) for p in _files(folder)},
        "tensors": {name: _tensors(folder / name) for name in _MODELS if (folder / name).exists()},
        "golden": _arrays(folder / "golden.npz"),
    }
    return (json.dumps(made, indent=1, sort_keys=True) + "\n").encode()


def read_certificate(folder: Path) -> dict[str, Any] | None:
    """The certificate of a bundle, None where it has none. Raises InputError (PQ409) for one that can not be read."""
    try:
        found = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(Problem("PQ409", f"'{folder / NAME}' can not be read: {error}", "write the bundle again")) from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("files"), dict):
        raise InputError(Problem("PQ409", f"'{folder / NAME}' is no certificate of this version", "write the bundle again"))
    return found


def changes(folder: Path, held: Mapping[str, Any]) -> list[str]:
    """What differs from the certificate, a line each: in a model the tensors, in the vectors the arrays, else the file."""
    found = []
    for name, digest in held["files"].items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif _hash(file.read_bytes()) != digest:
            details = _changed_parts(file, name, held)
            found.append(f"{name} was changed: {details}" if details else f"{name} was changed")
    return found


def _changed_parts(file: Path, name: str, held: Mapping[str, Any]) -> str:
    """The parts of a file whose content differs; empty where the difference is elsewhere in it."""
    kind, known = ("tensor", held.get("tensors", {}).get(name)) if name in _MODELS else ("array", held.get("golden"))
    if known is None or (name not in _MODELS and name != "golden.npz"):
        return ""
    try:
        now = _tensors(file) if name in _MODELS else _arrays(file)
    except Exception as error:  # whatever a damaged file makes its reader raise
        return f"it can not be read ({type(error).__name__})"
    differing = [part for part in {**known, **now} if known.get(part) != now.get(part)]
    return ", ".join(f"{kind} '{part}'" if part else "the graph" for part in differing)


def _tensors(file: Path) -> dict[str, str]:
    """Hash of every initializer by name, and of all the rest under the empty name."""
    import onnx

    model = onnx.load(file)
    found = {t.name: _hash(t.SerializeToString(deterministic=True)) for t in model.graph.initializer}
    del model.graph.initializer[:]
    return {**found, "": _hash(model.SerializeToString(deterministic=True))}


def _arrays(file: Path) -> dict[str, str]:
    with np.load(file, allow_pickle=False) as held:
        return {name: _hash(f"{held[name].dtype}{held[name].shape}".encode() + held[name].tobytes()) for name in held.files}


def _files(folder: Path) -> list[Path]:
    """Everything but the certificate itself and hidden files, in order."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != NAME and not p.name.startswith(".")]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
