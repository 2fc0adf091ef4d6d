"""A compiled model is an ordinary torch module: torch.compile, deepcopy, checkpoints, dtypes and pickling work as for any other."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.analysis import analyse
from tests.models import MLP, ConvBN, MultiIO, ResidualDigits, Unused

ROOT = Path(__file__).parent.parent
PRUNED = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5}}


def compiled(net: nn.Module | None = None, config=PRUNED, shape=(16,), n: int = 64) -> tuple[pq.CompiledModel, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(n, *shape)
    return pq.compile(MLP() if net is None else net, config, x), x


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


# ---- torch.compile
# torch's own compiler warns about parts of torch that it uses itself
own_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@own_warnings
def test_torch_compile_takes_the_whole_graph_forward_and_backward():
    model, x = compiled(small())
    fast = torch.compile(copy.deepcopy(model), fullgraph=True)
    model.eval(), fast.eval()
    with torch.no_grad():
        expected, got = model(x), fast(x)
    # float sums may be ordered differently, and a value may then round to the neighbouring code
    assert torch.allclose(got, expected, atol=0.1 * float(expected.abs().max()))
    assert float((got - expected).abs().mean()) <= 1e-3 * float(expected.abs().mean())
    model.train(), fast.train()
    y = torch.randint(5, (len(x),))
    F.cross_entropy(model(x), y).backward()
    F.cross_entropy(fast(x), y).backward()
    for name, p in model.named_parameters():
        grad = dict(fast.named_parameters())[f"_orig_mod.{name}"].grad
        assert p.grad is not None, name
        assert grad is not None, name
        assert torch.allclose(grad, p.grad, rtol=1e-2, atol=1e-3), name


@own_warnings
def test_quantized_values_stay_on_their_grid_under_torch_compile():
    model, x = compiled(small())
    output = next(n for n in model.graph_module.graph.nodes if n.op == "output")
    interval = analyse(model.graph_module)[output.args[0]]
    fast = torch.compile(copy.deepcopy(model), fullgraph=True).eval()
    with torch.no_grad():
        for values in (model.eval()(x), fast(x)):
            codes = values.double() * 2.0**interval.f
            assert torch.equal(codes, codes.round())
            assert bool(((codes >= torch.from_numpy(interval.low)) & (codes <= torch.from_numpy(interval.high))).all())


# ---- copies
def test_a_deepcopy_is_equal_and_independent():
    model, x = compiled(ResidualDigits(), shape=(1, 8, 8))
    model.eval()
    before = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), before)
    ours = {p.data_ptr() for p in (*model.parameters(), *model.buffers()) if p.numel()}
    assert not ours & {p.data_ptr() for p in (*twin.parameters(), *twin.buffers()) if p.numel()}
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)
    assert twin.text() != ""


def test_a_deepcopy_keeps_modules_that_forward_never_calls():
    model, _ = compiled(Unused(), shape=(8,))
    twin = copy.deepcopy(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert "spare.weight" in twin.state_dict()
    twin.load_state_dict(model.state_dict(), strict=True)


def test_a_deepcopy_trains_without_touching_the_original():
    model, x = compiled(ConvBN(), shape=(1, 8, 8))
    twin = copy.deepcopy(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    twin.train()
    F.cross_entropy(twin(x), torch.zeros(len(x), dtype=torch.long)).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, state[name]) for name, value in twin.state_dict().items())


# ---- checkpoints
SCRIPT = """
import sys, torch
sys.path.insert(0, {root!r})
import pquant_fx as pq
from pquant_fx.graph.analysis import analyse
from tests.models import ResidualDigits
torch.manual_seed(99)
stored = torch.load({path!r}, weights_only=True)
model = pq.compile(ResidualDigits(), {config!r}, torch.randn(16, 1, 8, 8))
model.load_state_dict(stored["model"], strict=True)
assert torch.equal(model.eval()(stored["x"]), stored["y"]), "other results in the new process"
assert torch.equal(model.freeze()(stored["x"]), stored["frozen"]), "other bits after freezing"
print("same")
"""


def test_a_checkpoint_gives_the_same_bits_in_a_new_process(tmp_path):
    model, x = compiled(ResidualDigits(), shape=(1, 8, 8))
    model.calibrate(x)
    model.eval()
    path = tmp_path / "model.pt"
    with torch.no_grad():
        torch.save({"model": model.state_dict(), "x": x, "y": model(x), "frozen": model.freeze()(x)}, path)
    script = SCRIPT.format(root=str(ROOT), path=str(path), config=PRUNED)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"


def test_a_float_checkpoint_loads_strictly_and_keys_keep_their_names():
    torch.manual_seed(1)
    other = MLP()
    net = MLP()
    model, _ = compiled(net)
    names = list(net.state_dict())
    assert [n for n in model.state_dict() if not n.startswith("pq.")] == names
    model.load_state_dict(other.state_dict(), strict=True)
    assert all(torch.equal(model.state_dict()[n], other.state_dict()[n]) for n in names)


def test_a_checkpoint_of_another_network_is_refused_with_every_key():
    model, _ = compiled()
    state = model.state_dict()
    state.pop("0.weight")
    state["9.weight"] = torch.zeros(1)
    with pytest.raises(pq.TransferError) as caught:
        model.load_state_dict(state, strict=True)
    assert {p.code for p in caught.value.problems} == {"PQ401"}
    assert "0.weight" in str(caught.value)
    assert "9.weight" in str(caught.value)


# ---- dtypes
def test_float64_gives_the_same_codes_where_float32_was_exact():
    model, x = compiled()
    model.eval()
    codes = (x * 16).round().clamp(-64, 63) / 16
    double = copy.deepcopy(model).to(torch.float64)
    assert all(p.dtype == torch.float64 for p in double.parameters())
    got = double(codes.double())
    assert got.dtype == torch.float64
    assert torch.allclose(got, model(codes).double(), atol=1e-5)
    assert torch.equal(double.freeze()(codes.double()), model.freeze()(codes).double())


def test_float64_is_the_type_of_buffers_where_there_is_no_parameter():
    model, x = compiled(nn.Sequential(nn.BatchNorm1d(16, affine=False)), "fixed8")
    double = copy.deepcopy(model).double().eval()
    assert torch.equal(double(x.double()), double.freeze()(x.double()))


def test_bfloat16_autocast_runs_forward_and_backward():
    model, x = compiled(ConvBN(), shape=(1, 8, 8))
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        loss = F.cross_entropy(out.float(), torch.zeros(len(x), dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.eval()(x)
    with torch.no_grad():
        exact = model.eval()(x)
    # bfloat16 has 8 significant bits: the layers' sums are rounded, the meaning stays
    assert float((rough.float() - exact).abs().mean()) < 0.1 * float(exact.abs().mean()) + 0.1


def test_several_inputs_and_outputs_survive_a_deepcopy_by_name():
    torch.manual_seed(0)
    x = {"tracks": torch.randn(8, 6), "towers": torch.randn(8, 4)}
    model = pq.compile(MultiIO(), "fixed8", x).eval()
    out, twin = model(**x), copy.deepcopy(model)(**x)
    assert list(out) == ["score", "energy"]
    assert all(torch.equal(out[k], twin[k]) for k in out)
