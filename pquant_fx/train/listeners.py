"""Which listeners a network needs, in the order in which they are told."""

from __future__ import annotations

import math

from pquant_fx.config import BetaController
from pquant_fx.errors import Problem, TrainingError
from pquant_fx.quantize import HGQQuantizer
from pquant_fx.train.batchnorm import StatisticsFreeze
from pquant_fx.train.beta import ScheduledBeta, beta_of
from pquant_fx.train.budget import BudgetControl
from pquant_fx.train.compiled import Compiled
from pquant_fx.train.events import Listener
from pquant_fx.train.learned import LearnedFormats, RangeTrace
from pquant_fx.train.loop import Loop
from pquant_fx.train.plan import Plan
from pquant_fx.train.pruning import pruning_listeners
from pquant_fx.train.resources import ResourceTerms
from pquant_fx.train.rewind import Rewind

__all__ = ["listeners_of"]

_COUNTS = 100  # exact counts of EBOPs for the history of a training, at the most


def listeners_of(model: Compiled, plan: Plan, loop: Loop) -> list[Listener]:
    """Masks first, then formats, which follow the weights that are left; what counts or moves bits comes last.

    Raises TrainingError (PQ412) for a budget where nothing learns bits, and for rewinding to an epoch that the plan does not have.
    """
    gm, training = model.graph_module, model.config.training_parameters
    formats = LearnedFormats(gm, training.bits_freeze, training.fine_tune_formats)
    return [
        *pruning_listeners(gm, loop),
        *([] if training.rewind == "never" else [Rewind(gm, training, plan, loop)]),
        formats,
        StatisticsFreeze(gm, training.batchnorm_freeze, plan),
        *([] if loop.retrace is None else [RangeTrace(plan, loop.retrace)]),
        *_resources(model, plan, loop, formats),
    ]


def _resources(model: Compiled, plan: Plan, loop: Loop, formats: LearnedFormats) -> list[Listener]:
    """What learned bits cost, and who sets the price; nothing where no bits are learned."""
    q, budget = model.config.quantization_parameters, model.config.budget
    learned = [m for m in model.graph_module.modules() if isinstance(m, HGQQuantizer)]
    if not learned and budget.ebops is not None:
        remedy = "set use_hgq: true in quantization_parameters, or begin with the preset hgq_budget"
        raise TrainingError(Problem("PQ412", "budget.ebops is set, but no quantizer of the network learns how many bits it has", remedy))
    if not learned:
        return []
    every = 1 if isinstance(q.hgq_beta, BetaController) else math.ceil(plan.epochs / _COUNTS)
    terms = ResourceTerms(model, learned, formats, loop, q.hgq_gamma, every)
    if budget.ebops is None:
        return [terms, ScheduledBeta(terms, beta_of(q.hgq_beta))]
    beta = q.hgq_beta if isinstance(q.hgq_beta, float) else 0.0
    return [terms, BudgetControl(terms, learned, formats, budget, plan, loop, beta)]
