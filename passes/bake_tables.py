"""bake_tables: an activation between quantizers becomes a table over the codes of its input.

    Quantizer<4,1>(x) -> Tabulated tanh -> Quantizer<8,1>    ->    lookup(Quantizer<4,1>(x), entries, 3, -8) -> Quantizer<8,1>

entries[n] = q(fl32(tanh((n - 8) 2^-3))). The quantizer behind now changes nothing: `remove_redundant_quantizers` takes it out
where no output needs its type. Formats per element and several readers: see `quantize.table_entries`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.fx import GraphModule, Node

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.dialect import IDENTITIES, Op, Quantizer, module_of, op_of
from pquant_fx.graph.info import info, place, set_info
from pquant_fx.graph.interval_tables import require_table
from pquant_fx.graph.intervals import Inexact, Interval
from pquant_fx.graph.rewriter import OWN, Rewriter
from pquant_fx.graph.tables import Tabulated, lookup
from pquant_fx.passes.settings import own_path
from pquant_fx.quantize.table_entries import table_entries

__all__ = ["bake_tables"]


def bake_tables(gm: GraphModule) -> bool:
    """Replace every table activation between quantizers by its entries; others stay, for `unsupported` to name.

    A table covers every code that the formats of its input have, whatever today's weights let through. Raises LoweringError
    with all findings: PQ303 for an input of too many bits, PQ305 for a function that is no number at some code, PQ306.
    """
    rw = Rewriter(gm)
    nodes = {n: op for n in gm.graph.nodes if (op := op_of(n)) is not None and op.kind == "table" and n.target is not lookup}
    if not nodes:
        return False
    formats = analyse(gm, declared=True)
    problems: list[Problem] = []
    for node, op in nodes.items():
        x, readers = formats.intervals.get(node.all_input_nodes[0]), _readers(node, rw)
        if x is None or not readers:
            continue
        try:
            _bake(node, op, rw, x, readers)
        except Inexact as error:
            problems.append(Problem(error.code, f"'{node.name}': {error.what}", error.remedy, place(node)))
        except ConfigError as error:
            problems += [replace(p, place=place(node)) for p in error.problems]
    if problems:
        raise LoweringError(problems)
    return rw.changed


def _readers(node: Node, rw: Rewriter) -> list[Quantizer]:
    """The quantizers that round the results, directly or after they were moved; none where anything else takes them as well."""
    found: list[Quantizer] = []
    stack = list(node.users)
    while stack:
        user = stack.pop()
        op, module = op_of(user), module_of(rw.gm, user)
        if isinstance(module, Quantizer):
            found.append(module)
        elif (op is not None and op.kind == "grid") or isinstance(module, IDENTITIES):
            stack += user.users
        else:
            return []
    return found


def _bake(node: Node, op: Op, rw: Rewriter, x: Interval, readers: list[Quantizer]) -> None:
    require_table(x)
    leaf = rw.module(node, Tabulated)
    function = leaf if leaf is not None else Tabulated(op.name, node.args[1:], node.kwargs)
    fmt = x.format()
    low, high = fmt.code_range
    codes = np.ldexp(np.arange(low, high + 1, dtype=np.float64), -fmt.f)
    entries, quantizer = table_entries(function.precisely(torch.from_numpy(codes)).double().numpy(), readers)
    exact = bool((entries.astype(np.float32) == entries).all())
    device = readers[0].kif()[2].device
    label = str(node.target).removeprefix(f"{OWN}.") if leaf is not None else f"{own_path(node)}.table"
    with rw.before(node):
        held = rw.constant(f"{label}_entries", torch.from_numpy(entries).to(device, torch.float32 if exact else torch.float64))
        table = rw.call_module(rw.own(f"{label}_quantizer", quantizer.to(device).eval()), held)
        for made in (held, table):
            set_info(made, replace(info(node), shape=entries.shape))
        new = rw.call(lookup, node.all_input_nodes[0], table, fmt.f, low)
    rw.inherit(new, node)
    rw.replace(node, new)
