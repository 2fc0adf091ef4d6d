"""Frozen weights that had a width each are stored in the bits between their first and their last one, zeros in none (B.12)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of
from pquant_fx.passes.bake_weights import bake_weights
from pquant_fx.quantize.minimal import minimal_formats, with_minimal_formats
from pquant_fx.quantize.static import FixedQuantizer
from tests.per_element import Formats, compiled


def enclosed_bits(code: int) -> int:
    """Highest set bit minus lowest set bit plus one, of the written-out number."""
    return len(f"{abs(code):b}".strip("0"))


def test_published_bits() -> None:
    codes = {0: 0, 12: 2, 5: 3, 80: 3, 127: 7, -128: 1, 1: 1, -3: 2}
    i, f = minimal_formats(torch.tensor([float(c) for c in codes]))
    assert (i + f).tolist() == list(codes.values())
    assert [t.tolist() for t in minimal_formats(torch.tensor([0.75, 80.0, -0.0]))] == [[0.0, 7.0, 0.0], [2.0, -4.0, 0.0]]


@given(st.lists(st.tuples(st.integers(-(2**24) + 1, 2**24 - 1), st.integers(-60, 60)), min_size=1, max_size=20), st.booleans())
def test_every_value_has_the_fewest_bits_that_hold_it(parts: list[tuple[int, int]], wide: bool) -> None:
    value = torch.tensor([n * 2.0**e for n, e in parts], dtype=torch.float64 if wide else torch.float32)
    i, f = minimal_formats(value)
    assert (i + f).tolist() == [enclosed_bits(n) for n, _ in parts]
    codes = value.double() * f.exp2()
    assert torch.equal(codes, codes.round())
    assert bool((codes.abs() < (i + f).exp2()).all())


def several_widths(value: Tensor) -> FixedQuantizer:
    generator = torch.Generator().manual_seed(0)
    bits, f = (torch.randint(a, b, value.shape, generator=generator).float() for a, b in ((0, 7), (-2, 6)))
    return FixedQuantizer(torch.ones_like(bits), bits - f, f, "RND", "SAT_SYM")


def test_a_power_of_two_survives_symmetric_saturation() -> None:
    """-0.5 in one magnitude bit is the code -1, which SAT_SYM keeps only while +1 exists: never a single signed bit."""
    quantizer = FixedQuantizer(torch.ones(3), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 2.0]), "RND", "SAT_SYM")
    value = quantizer(torch.tensor([-0.7, -0.5, 0.0]))
    made = with_minimal_formats(quantizer, value)
    assert [t.tolist() for t in made.kif()] == [[1, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert torch.equal(made(value), value)
    assert value.tolist() == [-0.5, -0.5, 0.0]


def test_only_widths_of_the_elements_shrink() -> None:
    value = torch.linspace(-2, 2, 12).reshape(3, 4)
    channels = FixedQuantizer(1.0, torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[3.0], [4.0], [5.0]]))
    same_width = FixedQuantizer(torch.ones(3, 4), torch.arange(12.0).reshape(3, 4) - 4, 10 - torch.arange(12.0).reshape(3, 4))
    for kept in (FixedQuantizer(1.0, 2.0, 5.0), channels, same_width):
        assert with_minimal_formats(kept, kept(value)) is kept
    changed = several_widths(value)
    assert with_minimal_formats(changed, changed(value)) is not changed


def test_freezing_leaves_the_bits_that_a_constant_multiplier_costs() -> None:
    model = Formats(0, overflows=("WRAP", "SAT_SYM", "WRAP_SM")).give(compiled("residual"))
    frozen = model.freeze()
    gm, seen = frozen.graph_module, 0
    for node, value in frozen.formats.constants.items():
        quantizer = module_of(gm, node)
        if not isinstance(quantizer, Quantizer) or value.numel() < 6:
            continue
        assert is_parameter_value(node)
        k, i, f = quantizer.kif()
        codes = (value.double() * 2.0**20).round().long().flatten().tolist()
        assert (i + f).flatten().tolist() == [enclosed_bits(c) for c in codes]
        assert torch.equal(k == 0, value == 0)
        seen += 1
    assert seen == 5
    before = [t.clone() for t in gm.state_dict().values()]
    assert not bake_weights(gm)
    assert all(torch.equal(a, b) for a, b in zip(before, gm.state_dict().values()))
