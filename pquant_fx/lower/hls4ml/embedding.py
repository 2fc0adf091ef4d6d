"""Rows of a table as hls4ml's Embedding."""

from __future__ import annotations

import numpy as np

from pquant_fx.lower.hls4ml.builder import Builder, constant_type
from pquant_fx.lower.hls4ml.net import Embed, refusal
from pquant_fx.lower.hls4ml.ranges import Range, fraction_bits

__all__ = ["embed"]


def embed(builder: Builder, op: Embed) -> None:
    """One row for each number. The table has an entry for every pattern of the number's bits: behind the last row stands its copy."""
    source = builder.values[op.inputs[0]]
    if source.range.f > 0 or source.range.low.min() < 0:
        remedy = "give it whole numbers from 0 on, by an unsigned quantizer without fraction bits"
        raise refusal("PQ202", "rows of a table by numbers that are not whole or negative", remedy, op.name)
    if builder.stream and len(source.shape) > 1:
        raise refusal("PQ202", f"rows of a table by numbers of shape {source.shape} in io_stream", "use io_type='io_parallel'", op.name)
    numbers = builder.arranged(op, source, source.shape, np.arange(source.order.size))
    rows, width = op.table.shape
    count = 1 << max(int(source.range.high.max()).bit_length(), (rows - 1).bit_length())
    table = op.table[np.minimum(np.arange(count), rows - 1)]
    f = fraction_bits(op.table)
    low, high = (np.broadcast_to(np.ldexp(end, f), op.shape) for end in (op.table.min(axis=0), op.table.max(axis=0)))
    result = Range(f, low, high)
    name = builder.layer(
        op, "Embedding", [numbers], result, types={"embeddings": constant_type(op.table)},
        n_in=source.order.size, n_out=width, vocab_size=count, embeddings_data=table,
    )  # fmt: skip
    builder.put(op, name, op.shape, np.arange(int(np.prod(op.shape))), result)
