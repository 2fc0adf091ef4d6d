"""The text of compiled graphs, word for word: a change of the compiler's output shows as a change of a file in tests/golden.

To accept a change: python -m tests.test_golden_text
"""

from pathlib import Path

import pytest
import torch

import pquant_fx as pq
from pquant_fx.graph.text import text
from tests.models import MLP, Concat, ConvBN, MultiIO, OptionA, SharedLinear

GOLDEN = Path(__file__).parent / "golden"
PRUNED = {"preset": "fixed8", "pruning_parameters": {"sparsity": 0.5}}
CASES = {
    "mlp_float": (MLP, ((16,),), "float"),
    "mlp_fixed8": (MLP, ((16,),), "fixed8"),
    "conv_bn_pruned": (ConvBN, ((1, 8, 8),), PRUNED),
    "option_a_fixed8": (lambda: OptionA(4), ((4, 8, 8),), "fixed8"),
    "concat_fixed8": (Concat, ((8,),), "fixed8"),
    "shared_linear_fixed8": (SharedLinear, ((8,),), "fixed8"),
    "multi_io_fixed8": (MultiIO, ((6,), (4,)), "fixed8"),
    "mlp_hgq": (MLP, ((16,),), "hgq"),
    "conv_bn_hgq": (ConvBN, ((1, 8, 8),), "hgq"),
    "option_a_requests": (lambda: OptionA(4), ((4, 8, 8),), {"preset": "fixed8", "layers": {"conv2": {"input_bits": 6}}}),
}


def rendered(name: str) -> str:
    make, shapes, config = CASES[name]
    torch.manual_seed(0)
    model = pq.compile(make(), config, tuple(torch.randn(4, *s) for s in shapes))
    return text(model.graph_module, lines=False)


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_graph_reads_as_before(name):
    assert rendered(name) == (GOLDEN / f"{name}.txt").read_text()


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(rendered(case))
