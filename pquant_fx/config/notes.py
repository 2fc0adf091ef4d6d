"""What a configuration says that its reader should know (notes), and what it asks for too early (pending)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pquant_fx.config.ignored import why_ignored
from pquant_fx.errors import Problem

if TYPE_CHECKING:
    from pquant_fx.config.root import Config

__all__ = ["learns_bits", "notes", "pending"]

_MAY_WAIT = ("training_parameters", "pruning_parameters", "fitcompress_parameters")


def pending(config: Config) -> Iterator[Problem]:
    """Settings of PQuantML's files whose features this version does not have (PQ408); `compile` refuses them."""
    for section in _MAY_WAIT:
        for code, key, what, remedy in getattr(config, section).unavailable():
            yield Problem(code, f"{section}.{key}: {what}", remedy)


def notes(config: Config) -> Iterator[Problem]:
    """Keys without effect, and settings that mean less or more than they seem to; severity "info"."""
    for path in config.ignored or ():
        yield _note("PQ406", f"{path} has no effect", why_ignored(path) or "leave it out")
    if config.hpo_parameters.num_trials:
        what = f"hpo_parameters.num_trials: {config.hpo_parameters.num_trials} is kept for a search, which this version does not have"
        yield _note("PQ408", what, "call pq.compile and fit in a search of your own")
    if not config.training_parameters.pruning_first and config.pruning_parameters.enable_pruning:
        yield from _about_order(config)
    if config.quantization_parameters.enable_quantization:
        yield from _about_formats(config)
        yield from _about_bits(config)


def _about_order(config: Config) -> Iterator[Problem]:
    rules = [rule.pruning for rule in config.layers.values() if rule.pruning is not None]
    why = {s.pruning_method: s.latent_because for s in (config.pruning_parameters, *rules) if s.latent_because}
    for method, because in why.items():
        text = f"training_parameters.pruning_first: false has no effect on '{method}': {because}"
        yield _note("PQ407", text, "leave it at true, or use magnitude, dst, mdmm or wanda")


def _about_formats(config: Config) -> Iterator[Problem]:
    q = config.quantization_parameters
    section = "quantization_parameters.default"
    for what, used, kind in (("weight", q.weight_format, q.weight_kind), ("data", q.data_format, q.data_kind)):
        written = q.written_format(what)
        if written is not None and used is None:
            where = {"dynamic": "the values", "calibrated": "calibration"}.get(kind, "training")
            text = f"{section}_{what}_...: {written} gives the width {written.width} only; the binary point comes from {where} ({kind})"
            yield _note("PQ407", text, f"write default_{what}_bits: {written.width}, or ask for nothing that moves the binary point")
    if q.data_format is not None and not q.data_format.k:
        text = f"{section}_data_keep_negatives: data is {q.data_format}, so every negative value becomes 0"
        yield _note("PQ407", text, "write default_data_bits for calibrated formats, or default_data_keep_negatives: true")


def _about_bits(config: Config) -> Iterator[Problem]:
    q = config.quantization_parameters
    if learns_bits(config) and q.hgq_beta == 0 and config.budget.ebops is None:
        text = "bits are learned, and quantization_parameters.hgq_beta is 0: no cost presses on them"
        yield _note("PQ407", text, "give hgq_beta (1e-6 is a start), or budget: {ebops: ...}")


def learns_bits(config: Config) -> bool:
    """Whether any place is asked to learn its bits (HGQ)."""
    q = config.quantization_parameters
    kinds: set[str | None] = {q.weight_kind, q.data_kind}
    for rule in config.layers.values():
        kinds |= {rule.weight_quantizer, rule.data_quantizer}
    return q.enable_quantization and "hgq" in kinds


def _note(code: str, what: str, remedy: str) -> Problem:
    return Problem(code, what, remedy, severity="info")
