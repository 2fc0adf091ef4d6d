"""What fit and calibrate accept as data, in which order and batches it comes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pquant_fx.errors import InputError, TrainingError
from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.train.data import ResidentBatches, batches_of, check_batch, input_batches
from tests.models import MLP, MultiIO


def traced(net: nn.Module, **shapes: tuple[int, ...]) -> torch.fx.GraphModule:
    gm = torch.fx.symbolic_trace(net)
    for node in gm.graph.nodes:
        if node.op == "placeholder" and shapes:
            set_info(node, NodeInfo(shape=(2, *next(s for n, s in shapes.items() if n in node.name))))
    return gm


@pytest.fixture(scope="module")
def mlp():
    return traced(MLP(), input=(16,))


@pytest.fixture(scope="module")
def two():
    return traced(MultiIO(), tracks=(6,), towers=(4,))


def of(data, gm, size=4, seed=0, shuffle=True):
    return batches_of(data, gm, size=size, seed=seed, shuffle=shuffle)


# ---- resident tensors
@given(samples=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_sample_comes_once_an_epoch_and_no_batch_is_a_single_rest(samples, size, seed, epoch):
    x = torch.arange(samples)
    source = ResidentBatches((x,), x * 10, size, seed, True)
    batches = list(source.read(epoch))
    assert len(source) == len(batches)
    assert sorted(torch.cat([b.inputs[0] for b in batches]).tolist()) == x.tolist()
    assert all(torch.equal(b.target, b.inputs[0] * 10) and b.size == len(b.target) for b in batches)
    assert all(b.size in (size, size + 1) for b in batches[:-1])
    if size > 1 and samples > 1:
        assert all(b.size > 1 for b in batches)


def test_order_depends_on_seed_and_epoch_only(mlp):
    x, y = torch.randn(32, 16), torch.arange(32)

    def order(seed, epoch):
        return torch.cat([b.target for b in of((x, y), mlp, seed=seed).read(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert torch.cat([b.target for b in of((x, y), mlp, shuffle=False).read(5)]).tolist() == list(range(32))


def test_numpy_arrays_are_whole_tensors_too(mlp):
    source = of((np.zeros((10, 16), np.float32), np.arange(10)), mlp, size=5)
    batch = next(source.read(0))
    assert isinstance(source, ResidentBatches)
    assert batch.inputs[0].dtype == torch.float32


@pytest.mark.parametrize(
    "x", [(torch.zeros(8, 6), torch.ones(8, 4)), {"towers": torch.ones(8, 4), "tracks": torch.zeros(8, 6)}], ids=["tuple", "dict"]
)
def test_several_inputs_come_in_the_order_of_forward(two, x):
    batch = next(of((x, torch.zeros(8)), two).read(0))
    assert [tuple(t.shape) for t in batch.inputs] == [(4, 6), (4, 4)]
    assert batch.inputs[1].min() == 1


def test_targets_may_be_nested(two):
    x = (torch.zeros(8, 6), torch.ones(8, 4))
    batch = next(of((x, {"score": torch.arange(8), "energy": torch.zeros(8, 1)}), two).read(0))
    assert batch.target["score"].shape == (4,)


# ---- streams
def test_a_loader_and_a_list_of_batches_are_read_as_they_come(mlp):
    x, y = torch.randn(10, 16), torch.arange(10)
    loader = of(DataLoader(TensorDataset(x, y), batch_size=4), mlp)
    assert len(loader) == 3
    assert [b.size for b in loader.read(0)] == [4, 4, 2]
    assert torch.equal(torch.cat([b.target for b in loader.read(1)]), y)
    pairs = of([(x[:4], y[:4]), (x[4:8], y[4:8])], mlp)
    assert [b.target.tolist() for b in pairs.read(0)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_iterable_without_a_length_is_counted(mlp):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(16), 1)] * 7)

    assert len(of(DataLoader(Endless(), batch_size=2), mlp)) == 4


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([], "no batch"),
        (torch.zeros(3, 16), "Tensor"),
        (None, "NoneType"),
        ({"x": 1}, "dict"),
        (TensorDataset(torch.zeros(4, 16), torch.zeros(4)), "single samples"),
        (((torch.zeros(2, 16), torch.zeros(2)) for _ in range(3)), "only once"),
        ((torch.zeros(4, 16), torch.zeros(5)), "4, 5 samples"),
        ((torch.zeros(0, 16), torch.zeros(0)), "no sample"),
        ((torch.zeros(4, 16), 3), "no pair of tensors"),
    ],
)
def test_unusable_training_data_is_refused(mlp, data, what):
    with pytest.raises(TrainingError, match=what) as caught:
        of(data, mlp)
    assert caught.value.code == "PQ410"


@pytest.mark.parametrize("item", [torch.zeros(2, 16), (torch.zeros(2, 16),), (1, 2, 3), {"x": 1}])
def test_a_batch_that_is_no_pair_is_refused(mlp, item):
    with pytest.raises(TrainingError, match=r"not a pair \(x, y\)") as caught:
        next(of([item, item, item], mlp).read(0))
    assert caught.value.code == "PQ410"


# ---- shapes
@pytest.mark.parametrize(
    ("x", "what"),
    [
        (torch.zeros(4, 15), r"\(4, 15\), the model was compiled for \(N, 16\)"),
        (torch.zeros(4, 4, 4), r"compiled for \(N, 16\)"),
        (torch.zeros(4, 16, dtype=torch.float64), "float64"),
        ((torch.zeros(4, 16), torch.zeros(4, 16)), "has 2 inputs, the model takes 1"),
    ],
)
def test_a_batch_of_another_shape_or_type_is_refused(mlp, x, what):
    batch = next(of((x, torch.zeros(4)), mlp).read(0))
    with pytest.raises(InputError, match=what) as caught:
        check_batch(batch, mlp)
    assert caught.value.code == "PQ409"


def test_all_inputs_that_do_not_fit_are_named_at_once(two):
    batch = next(of(((torch.zeros(8, 5), torch.zeros(8, 3)), torch.zeros(8)), two).read(0))
    with pytest.raises(InputError) as caught:
        check_batch(batch, two)
    assert [p.code for p in caught.value.problems] == ["PQ409", "PQ409"]
    assert "tracks" in str(caught.value)
    assert "towers" in str(caught.value)


def test_inputs_by_a_wrong_name_are_refused(two):
    with pytest.raises(InputError, match="names the inputs a, b, the model takes tracks, towers"):
        of(({"a": torch.zeros(8, 6), "b": torch.zeros(8, 4)}, torch.zeros(8)), two)


# ---- calibration
ONE, TWO = ["x"], ["a", "b"]
A, B, Y = torch.zeros(6, 3), torch.ones(6, 2), torch.arange(6)


@pytest.mark.parametrize(
    ("data", "names", "shapes"),
    [
        (A, ONE, [[(6, 3)]]),
        ((A, Y), ONE, [[(6, 3)]]),
        ([A, A], ONE, [[(6, 3)], [(6, 3)]]),
        ([(A,), (A,)], ONE, [[(6, 3)], [(6, 3)]]),
        ([(A, Y)], ONE, [[(6, 3)]]),
        ([{"x": A}], ONE, [[(6, 3)]]),
        ({"b": B, "a": A}, TWO, [[(6, 3), (6, 2)]]),
        ([(A, B)], TWO, [[(6, 3), (6, 2)]]),
        ([((A, B), Y)], TWO, [[(6, 3), (6, 2)]]),
        ([({"b": B, "a": A}, Y)], TWO, [[(6, 3), (6, 2)]]),
        (DataLoader(TensorDataset(A, Y), batch_size=3), ONE, [[(3, 3)], [(3, 3)]]),
    ],
)
def test_calibration_reads_inputs_from_what_people_have(data, names, shapes):
    assert [[tuple(t.shape) for t in batch] for batch in input_batches(data, names, 32)] == shapes


def test_calibration_reads_at_most_the_limit_but_every_sample_of_a_tensor():
    assert len(list(input_batches((A for _ in range(100)), ONE, 5))) == 5
    whole = torch.arange(1000.0)[:, None]
    parts = list(input_batches(whole, ONE, 5))
    assert len(parts) == 5
    assert torch.equal(torch.cat([p[0] for p in parts]), whole)


@pytest.mark.parametrize(("data", "names"), [(3, ONE), ("x", ONE), ([3], ONE), ([(A, B, Y)], TWO), ([(A, B, Y)], ONE)])
def test_calibration_refuses_what_holds_no_inputs(data, names):
    with pytest.raises(TrainingError) as caught:
        list(input_batches(data, names, 32))
    assert caught.value.code == "PQ410"
