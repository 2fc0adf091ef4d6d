"""The compiler's table of contents: the passes in the order in which they run.

    canonicalize             one spelling for every operation; methods and in-place operations become functions
    place_quantizers         `pq.fixed_point` calls in the user's forward become quantizers
    functionalize            modules become functions of their parameters
    propagate_shapes         every node knows its shape at the example inputs
    fold_batchnorm           BatchNorm becomes arithmetic on the weights before they are quantized
    expand_attention         attention and encoder layers become linear layers, products and softmax
    expand_recurrent         LSTM and GRU become linear layers and tables, one step after the other
    lift_numbers             numbers that have to be rounded become constants; divisions become products
    expand_norms             LayerNorm and RMSNorm become sums, products and a table
    hard_tanh                tanh becomes a clip where no table of it is wanted
    relu_multiplier          a learned power of two behind a ReLU, where it is wanted
    expand_softmax           softmax becomes a maximum, two tables, a sum and a product
    round_slopes             leaky slopes get the bits of a weight
    round_means              a mean over P values, P no power of two, becomes their sum times a fixed-point 1/P
    insert_masks             every prunable weight passes through a mask
    insert_quantizers        every value that hardware computes with gets a format
    align_joins              how branches that meet share a grid
    tabulate                 activations with a table give its entries in evaluation
    insert_statistics        masks that prune by activations get to see them

and on freezing:

    use_running_statistics   BatchNorm's statistics are its buffers now
    bake_weights             parameters, masks and their quantizers become constants with static formats
    bake_tables              activations become tables over the codes of their inputs
    remove_dead_channels     channels that are always zero leave the graph, with all that is coupled to them
    remove_redundant_quantizers   a quantizer that provably changes nothing goes

This folder is imported as `pquant_fx.passes`.
"""

from __future__ import annotations

from pquant_fx.config import ConfigLike, load_config
from pquant_fx.graph.passes import Pass, Pipeline
from pquant_fx.passes.align_joins import AlignJoins
from pquant_fx.passes.bake_tables import bake_tables
from pquant_fx.passes.bake_weights import bake_weights
from pquant_fx.passes.canonicalize import canonicalize
from pquant_fx.passes.expand_attention import ExpandAttention
from pquant_fx.passes.expand_norms import ExpandNorms
from pquant_fx.passes.expand_recurrent import ExpandRecurrent
from pquant_fx.passes.expand_softmax import ExpandSoftmax
from pquant_fx.passes.fold_batchnorm import FoldBatchnorm
from pquant_fx.passes.functionalize import functionalize
from pquant_fx.passes.hard_tanh import HardTanh
from pquant_fx.passes.insert_masks import InsertMasks
from pquant_fx.passes.insert_quantizers import InsertQuantizers
from pquant_fx.passes.insert_statistics import insert_statistics
from pquant_fx.passes.lift_numbers import LiftNumbers
from pquant_fx.passes.place_quantizers import place_quantizers
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.passes.relu_multiplier import ReluMultiplier
from pquant_fx.passes.remove_dead_channels import remove_dead_channels
from pquant_fx.passes.remove_redundant_quantizers import remove_redundant_quantizers
from pquant_fx.passes.round_means import RoundMeans
from pquant_fx.passes.round_slopes import RoundSlopes
from pquant_fx.passes.tabulate import tabulate
from pquant_fx.passes.use_running_statistics import use_running_statistics

__all__ = ["default_pipeline", "freezing_pipeline"]


def default_pipeline(config: ConfigLike) -> Pipeline:
    """What `pq.compile` runs; a configuration that compresses nothing only canonicalises."""
    config = load_config(config)
    front: tuple[Pass, ...] = (canonicalize, place_quantizers, functionalize, propagate_shapes)
    prunes, quantizes = config.pruning_parameters.enable_pruning, config.quantization_parameters.enable_quantization
    compress: tuple[Pass, ...] = ()
    if quantizes:
        compress += (FoldBatchnorm(), ExpandAttention(config), ExpandRecurrent(config), LiftNumbers(config), ExpandNorms(config))
        compress += (HardTanh(config), ReluMultiplier(config), ExpandSoftmax(config), RoundSlopes(config), RoundMeans(config))
    if prunes:
        compress += (InsertMasks(config),)
    if quantizes:
        compress += (InsertQuantizers(config), AlignJoins(config), tabulate)
    if prunes:
        compress += (insert_statistics,)
    return Pipeline((*front, *compress), name="compile")


def freezing_pipeline() -> Pipeline:
    """What `freeze` runs on a copy of the compiled graph."""
    return Pipeline((use_running_statistics, bake_weights, bake_tables, remove_dead_channels, remove_redundant_quantizers), name="freeze")
