"""Activation Pruning: windows of batches, both criteria, a mask that only shrinks, biases and BatchNorm, layers that are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import ActivationPruning, load_config
from pquant_fx.errors import ConfigError, PQuantWarning, TrainingError
from pquant_fx.prune import ActivationMask, Layout, Member
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.train.pruning import masks_of


def made(weight: Tensor, layout: Layout | None = None, **options: Any) -> ActivationMask:
    mask = ActivationMask(weight, ActivationPruning(**options), layout).train()
    mask.enter(TRAINING)
    mask.statistics.begin()
    return mask


def see(mask: ActivationMask, *values: Tensor) -> None:
    """One window."""
    for x in values:
        mask.statistics(x)
        mask.statistics.gather(lambda _: None)
    mask.measure()


# ---- the decision
def test_activity_is_the_fraction_of_samples_and_positions() -> None:
    torch.manual_seed(0)
    maps, rows = [torch.randn(n, 3, 4, 5) for n in (2, 6)], [torch.randn(n, 7, 3) for n in (2, 6)]
    for values, weight, axes in ((maps, torch.randn(3, 2, 3, 3), (0, 2, 3)), (rows, torch.randn(3, 4), (0, 1))):
        whole = torch.cat(values)
        for criterion, expected in (("active_fraction", (whole > 0).double()), ("mean_activation", whole.relu().double())):
            mask = made(weight, criterion=criterion)
            see(mask, *values)
            torch.testing.assert_close(mask.activity, expected.mean(axes))


@pytest.mark.parametrize(("layout", "shape"), [(Layout(), (4, 2)), (Layout(), (4, 2, 3, 3)), (Layout(1, 0, 2), (6, 2, 3, 3))])
def test_whole_outputs_go(layout: Layout, shape: tuple[int, ...]) -> None:
    mask = made(torch.randn(shape), layout, threshold=0.5, max_removed=1)
    mask.activity.copy_(torch.tensor([0.1, 0.5, 0.51, 1.0]))
    mask.remove()
    assert mask.units(torch.randn(shape)).tolist() == [0, 0, 1, 1]
    assert torch.equal(mask.mask, layout.restore(layout.rows(mask.mask)[:, :1, :1].expand(layout.rows(mask.mask).shape), mask.mask.shape))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 1.0]), min_size=6, max_size=6), min_size=1, max_size=6),
    st.sampled_from([0.01, 0.2, 0.5, 1.0]),
)
def test_a_mask_only_shrinks_by_at_most_a_fraction_and_keeps_a_unit(windows: list[list[float]], most: float) -> None:
    mask = made(torch.randn(6, 3), threshold=0.3, max_removed=most)
    alive = [1.0] * 6
    for activity in windows:
        mask.activity.copy_(torch.tensor(activity, dtype=torch.float64))
        mask.remove()
        left = int(sum(alive))
        candidates = sorted((a, n) for n, a in enumerate(activity) if alive[n] and a <= 0.3)
        for _, n in candidates[: min(max(1, int(most * left)), left - 1)]:
            alive[n] = 0.0
        assert mask.units(mask.mask).tolist() == alive
    assert sum(alive) >= 1
    mask.remove()  # without a new window nothing happens
    assert mask.units(mask.mask).tolist() == alive


def test_one_unit_stays() -> None:
    mask = made(torch.randn(1, 3))
    see(mask, torch.full((4, 1), -1.0))
    mask.remove()
    assert bool(mask.mask.all())


def test_values_that_are_not_finite_or_missing_are_refused() -> None:
    mask = made(torch.randn(2, 3), criterion="mean_activation")
    with pytest.raises(TrainingError) as nothing:
        mask.measure()
    with pytest.raises(TrainingError) as wrong:
        see(mask, torch.tensor([[1.0, torch.inf]]))
    assert (nothing.value.code, wrong.value.code) == ("PQ412", "PQ411")


# ---- when
def test_windows_are_counted_in_batches_and_masks_move_at_the_end_of_an_epoch() -> None:
    weight = torch.randn(4, 3)
    mask = ActivationMask(weight, ActivationPruning(t_start_collecting_batch=3, t_delta=2, threshold=0.5, max_removed=1)).train()
    member = [Member(mask, weight)]
    ActivationMask.begin(member, 12)
    seen, alive = [], []
    for step in range(1, 13):
        mask.statistics(torch.tensor([[1.0, -1, 1, 1]]))
        mask.statistics.gather(lambda _: None)
        ActivationMask.step(member, step, 12)
        seen.append(int(mask.statistics.total[-1]))
        if step % 4 == 0:
            ActivationMask.end_epoch(member, step // 4 - 1, 3)
        alive.append(int(mask.units(weight).sum()))
    assert seen == [0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert alive == [4] * 7 + [3] * 5
    ActivationMask.end(member)
    assert not mask.statistics.is_collecting


def test_a_training_that_ends_before_the_first_window_is_told() -> None:
    weight = torch.randn(2, 3)
    with pytest.warns(PQuantWarning, match="nothing is removed"):
        ActivationMask.begin([Member(ActivationMask(weight, ActivationPruning()), weight)], 99)


# ---- networks
class Net(nn.Module):
    """Layers with and without BatchNorm; only `a` and `b` are followed by a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        return self.head((x + self.c(x)).mean((2, 3)))


X, Y = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def compiled(quantized: bool, dead: tuple[int, ...] = (1, 4), **pruning: Any) -> pq.CompiledModel:
    """Of layers a and b, the units in `dead` never fire at first."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.norm.bias[list(dead)] = -50.0
        net.b.bias[list(dead)] = -50.0
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 1, "epochs": 3, "fine_tuning_epochs": 1, "batch_size": 8},
        "quantization_parameters": {"enable_quantization": quantized},
        "pruning_parameters": {
            "pruning_method": "activation_pruning",
            "threshold": 0.0,
            "max_removed": 0.5,
            "t_start_collecting_batch": 1,
            "t_delta": 2,
            **pruning,
        },
    }
    return pq.compile(net, config, X)


@pytest.mark.parametrize("quantized", [True, False])
def test_silent_units_leave_a_network_with_their_biases(quantized: bool) -> None:
    model = compiled(quantized)
    notes = {note.place.module: note.what for note in model.notes if note.code == "PQ608"}
    assert sorted(notes) == ["c", "head"]
    assert "ReLU" in notes["c"]
    assert "outputs of the network" in notes["head"]
    model.fit((X, Y))
    masks = {path: mask for mask, path in masks_of(model.graph_module)}
    assert sorted(masks) == ["a.weight", "b.weight"]
    for mask in masks.values():
        kept = mask.layout.rows(mask.mask)[:, 0, 0].nonzero().flatten().tolist()
        assert kept == [n for n in range(len(mask.mask)) if n not in (1, 4)]
        assert not mask.statistics.is_collecting
    with torch.no_grad():  # whatever the bias of a removed unit becomes, it does not speak
        model.eval()
        before = model(X)
        model.get_parameter("b.bias")[[1, 4]] = 9.0
        model.get_parameter("norm.bias")[[1, 4]] = 9.0
        if quantized:
            model.graph_module.eval()
        assert torch.equal(model(X), before)
    if quantized:
        assert torch.equal(model.freeze()(X), before)


def test_statistics_are_those_before_any_quantizer() -> None:
    model = compiled(True)
    order = [n.name for n in model.graph_module.graph.nodes if "statistics" in n.name or n.name in ("norm", "relu", "pq_relu_quantizer")]
    assert order[:4] == ["norm", "pq_a_weight_mask_statistics", "relu", "pq_relu_quantizer"]


def test_a_removed_unit_with_a_bias_stays_away() -> None:
    """What would fire for ever behind a masked weight alone."""
    weight = torch.tensor([[1.0], [1.0]])
    mask = made(weight, threshold=0.3, max_removed=1)
    bias = torch.tensor([5.0, 5.0])
    see(mask, torch.tensor([[-1.0, 1.0]] * 4))
    mask.remove()
    for _ in range(3):
        x = torch.randn(8, 1)
        see(mask, F.linear(x, mask(weight), bias * mask.units(weight)))
        mask.remove()
        assert mask.units(weight).tolist() == [0, 1]


def test_masked_entries_get_no_gradient_and_commute_with_quantization() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    mask = made(weight, threshold=0.5, max_removed=1)
    mask.activity.copy_(torch.tensor([0.1, 1, 1, 0.2]))
    mask.remove()
    mask(weight).sum().backward()
    assert torch.equal(weight.grad, mask.mask)
    with torch.no_grad():
        last = mask(weight)
        mask.fix_(weight)
        assert torch.equal(mask(weight), last)
        assert torch.equal(fixed_point(mask(weight), 1, 2, 3, "RND", "SAT"), mask(fixed_point(weight, 1, 2, 3, "RND", "SAT")))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"threshold": 1.0}, "threshold"),
        ({"max_removed": 0}, "max_removed"),
        ({"t_delta": 0}, "t_delta"),
        ({"criterion": "sum"}, "criterion"),
    ],
)
def test_settings_that_can_not_be(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "activation_pruning", **section}})
    assert [(p.code, p.what.partition(":")[0]) for p in caught.value.problems] == [("PQ407", f"pruning_parameters.{key}")]
    assert load_config({"pruning_parameters": {"pruning_method": "activation_pruning", "criterion": "mean_activation", "threshold": 2}})


def test_a_goal_is_refused() -> None:
    config = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "activation_pruning"}, "layers": {"a": {"sparsity": 0.5}}}
    with pytest.raises(ConfigError) as caught:
        pq.compile(Net(), config, X)
    assert caught.value.code == "PQ407"


def test_l1_adds_the_sum_of_the_magnitudes() -> None:
    w = torch.tensor([[1.0, -2.0], [0.5, 0.0]], requires_grad=True)
    mask = ActivationMask(w, ActivationPruning(l1=0.1))
    term = ActivationMask.loss([Member(mask, w)])
    assert term is not None
    term.backward()
    assert term.item() == pytest.approx(0.35)
    assert w.grad is not None
    assert w.grad.tolist() == [[pytest.approx(0.1), pytest.approx(-0.1)], [pytest.approx(0.1), 0.0]]
    assert ActivationMask.loss([Member(ActivationMask(w, ActivationPruning()), w)]) is None
