"""Ordinary structures as written Verilog: simulated, every bit compared with the integer interpreter."""

from __future__ import annotations

import pytest
import torch

import pquant_fx as pq
from tests.rtl_networks import needs, small_bits
from tests.structures import load_all
from tests.structures_fixed import FIXED, names

pytest.importorskip("alkaid")

SMALL = 6_000  # EBOPs
NO_RTL = {"embedding": "embed has no form in RTL"}
CONSTANT = "every output is a constant"  # what three bits may leave of an untrained network


@needs("iverilog")
@pytest.mark.parametrize("part", range(3))
def test_small_structures_have_every_bit_in_iverilog(tmp_path, part):
    assert names("structures_fixed_maps")
    count, refused = 0, {}
    for n, (name, case) in enumerate(list({**FIXED, **load_all()}.items())[part::3]):
        torch.manual_seed(0)
        try:
            model = pq.compile(case.model(), small_bits(3), case.inputs(32)).freeze()
        except pq.PQuantError:
            continue
        if model.ebops().total > SMALL:
            continue
        options = {"latency_cutoff": (0, 3)[n % 2], "structure": ("flat", "layers")[n // 2 % 2]}
        try:
            project = model.to_rtl(tmp_path / name, **options)
        except pq.LoweringError as error:
            refused[name] = str(error)
            continue
        report = project.simulate(samples=30, tools=("iverilog",))
        assert report.ok, f"{name} {options}\n{report}"
        count += 1
    assert count >= 18
    assert all(NO_RTL.get(name, CONSTANT) in what for name, what in refused.items()), refused
