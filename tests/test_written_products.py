"""Products that the user wrote out (x @ self.weight) are pruned as layers are: every granularity, frozen, in integers, exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import ConfigError
from pquant_fx.prune import Layout, UnitMask
from pquant_fx.train.pruning import masks_of


class Written(nn.Module):
    """(N, 8) -> (N, 3): from the right, transposed, with BatchNorm, and a last one whose outputs are the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.offset = nn.Parameter(torch.randn(8, 12) / 3), nn.Parameter(torch.randn(12))
        self.turned, self.bn = nn.Parameter(torch.randn(12, 12) / 3), nn.BatchNorm1d(12)
        self.last = nn.Parameter(torch.randn(12, 3) / 3)
        self.register_buffer("basis", torch.randn(8, 8) / 3)  # learned by nobody

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu((x @ self.basis) @ self.first + self.offset)
        x = F.relu(self.bn(torch.matmul(x, self.turned.t())))
        return x @ self.last


class FromTheLeft(nn.Module):
    """(N, 6, 5) -> (N, 4, 5): the weight mixes the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.offset, self.out = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 1)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.out @ F.relu(self.mix @ x + self.offset)


def compiled(net: nn.Module, pruning: dict[str, Any], *shape: int, preset: str = "fixed8", **more: Any) -> tuple[pq.CompiledModel, Tensor]:
    training = {"pretraining_epochs": 0, "epochs": 2, "fine_tuning_epochs": 1, "batch_size": 16}
    x = torch.randn(64, *shape)
    return pq.compile(net, {"preset": preset, "training_parameters": training, "pruning_parameters": pruning, **more}, x), x


def layouts(model: pq.CompiledModel) -> dict[str, Layout]:
    return {path: mask.layout for mask, path in masks_of(model.graph_module)}


RIGHT, PLAIN = Layout(outputs=1, inputs=0), Layout()
CASES: dict[str, dict[str, Any]] = {
    "unstructured": {"pruning_method": "magnitude", "sparsity": 0.5},
    "structured": {"pruning_method": "magnitude", "sparsity": 0.5, "granularity": "structured"},
    "nm": {"pruning_method": "magnitude", "granularity": "nm", "nm": "2:4"},
    "dst": {"pruning_method": "dst", "threshold_init": 0.2},
    "cs": {"pruning_method": "cs", "threshold_init": 0.001, "threshold_decay": 1e-3},
    "autosparse": {"pruning_method": "autosparse", "threshold_init": -2.0},
    "pdp-structured": {"pruning_method": "pdp", "sparsity": 0.5, "structured_pruning": True},
    "mdmm-structured": {"pruning_method": "mdmm", "metric_type": "StructuredSparsity", "target_sparsity": 0.5},
    "mdmm-hardware": {"pruning_method": "mdmm", "metric_type": "FPGAAwareSparsity", "rf": 4, "target_sparsity": 0.5},
    "wanda": {"pruning_method": "wanda", "sparsity": 0.5, "t_start_collecting_batch": 0, "t_delta": 1, "calculate_pruning_budget": False},
    "activation": {"pruning_method": "activation_pruning", "threshold": 0.6, "t_start_collecting_batch": 0, "t_delta": 2},
}
STRUCTURED = ("structured", "pdp-structured", "mdmm-structured")


@pytest.mark.parametrize("name", CASES)
def test_it_is_pruned_and_freezes_to_what_it_was_in_every_engine(name: str) -> None:
    torch.manual_seed(0)
    model, x = compiled(Written(), CASES[name], 8)
    expected = {"first": RIGHT, "turned": PLAIN, "last": RIGHT}
    if name in STRUCTURED:
        del expected["last"]
    if name == "activation":
        expected = {"first": RIGHT}
    assert layouts(model) == expected
    assert {n.place.node for n in model.notes if n.code == "PQ608"} == {f"matmul_{n + 1}" for n in range(1, 3) if n >= len(expected)}
    model.fit((x, torch.randint(3, (64,))))
    for mask, path in masks_of(model.graph_module):
        weight = model.get_parameter(path).detach()
        assert torch.equal(weight, weight * mask.mask)
        assert 0 < float(mask.mask.mean()) < 1
    last, frozen = model.eval()(x), model.freeze()
    assert torch.equal(frozen(x), last)
    assert frozen.verify(x, ("integer", "qonnx", "onnx")).ok


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("preset", ["fixed8", "float"])
def test_a_removed_output_gives_zero_past_offsets_and_batchnorm(name: str, preset: str) -> None:
    torch.manual_seed(0)
    model, x = compiled(Written(), CASES[name], 8, preset=preset)
    model.fit((x, torch.randint(3, (64,))))
    assert sum(isinstance(m, UnitMask) for m in model.modules()) == (3 if preset == "fixed8" else 2)
    seen: list[Tensor] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.target is F.relu:
                seen.append(result)
            return result

    for mode in (True, False):
        seen.clear()
        Watch(model.train(mode).graph_module).run(x)
        for (mask, _), value in zip(masks_of(model.graph_module), seen):
            gone = mask.layout.rows(mask.mask).amax((1, 2)) == 0
            assert 0 < int(gone.sum()) < len(gone)
            assert bool((value[:, gone] == 0).all())
            assert bool((value[:, ~gone] != 0).any())


def test_n_of_m_runs_along_the_inputs() -> None:
    torch.manual_seed(0)
    model, x = compiled(Written(), CASES["nm"], 8)
    model.fit((x, torch.randint(3, (64,))))
    masks = {path: mask.mask for mask, path in masks_of(model.graph_module)}
    assert set(masks["first"].reshape(2, 4, 12).sum(1).flatten().tolist()) == {2.0}
    assert set(masks["turned"].reshape(12, 3, 4).sum(2).flatten().tolist()) == {2.0}


@pytest.mark.parametrize("name", ["unstructured", "structured", "nm", "dst", "wanda"])
def test_from_the_left(name: str) -> None:
    torch.manual_seed(0)
    model, x = compiled(FromTheLeft(), CASES[name], 6, 5)
    notes = [n.what for n in model.notes if n.code == "PQ608"]
    if name == "wanda":
        assert masks_of(model.graph_module) == []
        assert len(notes) == 2
        assert all("multiplied from the left" in note for note in notes)
        return
    assert layouts(model) == ({"mix": PLAIN} if name == "structured" else {"mix": PLAIN, "out": PLAIN})
    model.fit((x, torch.randn(64, 4, 5)))
    assert torch.equal(model.freeze()(x), model.eval()(x))
    if name == "structured":
        ((mask, _),) = masks_of(model.graph_module)
        hidden = F.relu(model.mix @ x + model.offset * mask.mask[:, :1]).detach()
        assert [bool((hidden[:, n] == 0).all()) for n in range(8)] == (mask.mask[:, 0] == 0).tolist()


class Tied(nn.Module):
    """One weight, read as it is and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.relu(x @ self.weight) @ self.weight.t()))


def test_a_weight_read_both_ways_has_one_mask_but_no_outputs_to_remove() -> None:
    torch.manual_seed(0)
    model, x = compiled(Tied(), CASES["unstructured"], 8)
    assert list(layouts(model)) == ["weight", "head.weight"]
    model.fit((x, torch.randint(3, (64,))))
    assert torch.equal(model.freeze()(x), model.eval()(x))
    model, _ = compiled(Tied(), CASES["structured"], 8)
    (note,) = [n.what for n in model.notes if n.code == "PQ608" and "matmul" in n.what]
    assert "on different axes" in note


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.reshape(8, 8)


def test_what_can_not_be_pruned_says_why_and_rules_reach_it() -> None:
    model, _ = compiled(Reshaped(), CASES["unstructured"], 8)
    (note,) = [n for n in model.notes if n.code == "PQ608"]
    assert "its axes are not those of the parameter" in note.what
    model, _ = compiled(Written(), {**CASES["unstructured"], "disable_pruning_for_layers": ["matmul_1"]}, 8)
    assert list(layouts(model)) == ["turned", "last"]
    model, _ = compiled(Written(), CASES["unstructured"], 8, layers={"matmul_1": {"sparsity": 0.25}, "matmul_2": {"prune": False}})
    assert {path: mask.target for mask, path in masks_of(model.graph_module)} == {"first": 0.25, "last": None}
    with pytest.raises(ConfigError, match="kernel") as caught:
        compiled(Written(), {"pruning_method": "mdmm", "metric_type": "PACAPatternSparsity"}, 8)
    assert caught.value.problems[0].place.node == "matmul_1"
