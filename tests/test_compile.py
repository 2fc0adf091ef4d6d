"""What `pq.compile` promises: names kept, the user's model untouched, quantizers where values are made, one shape rule."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.values import is_join
from tests.models import MLP, Concat, ConvBN, MultiIO, ResidualDigits, SharedLinear, Unused

PRUNED = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5}}


def compiled(net, x, config="fixed8"):
    torch.manual_seed(0)
    return pq.compile(net, config, x)


def quantizers(model):
    return [n for n in model.graph_module.graph.nodes if n.op == "call_module" and isinstance(model.get_submodule(n.target), pq.Quantizer)]


def used_by(model, name):
    """What the operator `name` takes, as module paths or names."""
    node = next(n for n in model.graph_module.graph.nodes if n.name == name)
    return [str(a.target) if a.op != "placeholder" else a.name for a in node.all_input_nodes]


@pytest.mark.parametrize(
    ("net", "shape"), [(MLP(), (16,)), (ConvBN(), (1, 8, 8)), (ResidualDigits(), (1, 8, 8)), (Unused(), (8,)), (SharedLinear(), (8,))]
)
@pytest.mark.parametrize("config", ["float", "fixed8", PRUNED])
def test_names_are_kept_and_float_checkpoints_load_strictly(net, shape, config):
    x = torch.randn(4, *shape)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kinds = {n: type(m) for n, m in net.named_modules()}
    model = pq.compile(net, config, x)
    assert set(before) <= set(model.state_dict())
    assert all(k in before or k.startswith("pq.") for k in model.state_dict())
    assert {n for n, _ in net.named_parameters()} == {n for n, _ in model.named_parameters()}
    other = {k: v + 1 if v.is_floating_point() else v for k, v in before.items()}
    model.load_state_dict(other, strict=True)
    assert all(torch.equal(model.state_dict()[k], other[k]) for k in other)
    assert {n: type(m) for n, m in net.named_modules()} == kinds
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("net", "shape"), [(MLP(), (16,)), (ConvBN(), (1, 8, 8)), (ResidualDigits(), (1, 8, 8)), (Concat(), (8,))])
def test_the_float_preset_equals_the_original(net, shape):
    x = torch.randn(5, *shape)
    model = pq.compile(net, "float", x)
    for batch in (x, x[:1]):
        net.eval(), model.eval()
        assert torch.equal(model(batch), net(batch))
    net.train(), model.train()
    assert torch.equal(model(x), net(x))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in net.state_dict().items())


def test_every_multiplier_sees_quantized_values_and_a_forked_value_is_quantized_once():
    model = compiled(ResidualDigits(), torch.randn(8, 1, 8, 8))
    graph = model.graph_module.graph
    made = set(quantizers(model))
    for node in graph.nodes:
        op = op_of(node)
        if op is not None and op.name in ("conv2d", "linear"):
            if all("statistics" in str(u.target) for u in node.users):
                continue  # measured by BatchNorm only
            x, weight, bias = node.args[:3]
            assert weight in made
            assert bias in made
            assert x in made or op_of(x).kind == "grid"
    data = [n for n in made if not any(part in str(n.target) for part in ("weight", "bias"))]
    sources = [n.args[0] for n in data]
    assert len(sources) == len(set(sources))
    assert all(list(s.users) == [q] for s, q in zip(sources, data))


def test_a_shared_layer_has_one_weight_quantizer_and_an_activation_quantizer_per_call_site():
    model = compiled(SharedLinear(), torch.randn(4, 8))
    targets = [str(n.target) for n in quantizers(model)]
    assert targets.count("pq.fc.weight_quantizer") == 1
    assert targets.count("pq.act.quantizer") == 1
    assert len(targets) == len(set(targets))


def test_everything_exists_when_compile_returns():
    model = compiled(ResidualDigits(), torch.randn(8, 1, 8, 8), PRUNED)
    names = set(model.state_dict())
    model(torch.randn(3, 1, 8, 8))
    assert set(model.state_dict()) == names


def test_multiple_inputs_and_outputs_keep_names_and_structure():
    net, x = MultiIO(), (torch.randn(4, 6), torch.randn(4, 4))
    for given in (x, {"tracks": x[0], "towers": x[1]}, {"towers": x[1], "tracks": x[0]}):
        model = pq.compile(net, "float", given)
        assert model.input_names == ("tracks", "towers")
        out = model(*x)
        assert list(out) == ["score", "energy"]
        assert torch.equal(out["score"], net(*x)["score"])
        assert torch.equal(model(towers=x[1], tracks=x[0])["energy"], out["energy"])


def test_shapes_in_the_configuration_stand_in_for_examples():
    model = pq.compile(MLP(), {"preset": "fixed8", "inputs": {"input": {"shape": [16]}}})
    assert model.calibration_source == "shape"
    assert model(torch.randn(3, 16)).shape == (3, 5)
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert caught.value.code == "PQ307"
    model.calibrate(torch.randn(64, 16))
    assert model.calibration_source == "data"
    assert model.freeze()(torch.randn(3, 16)).shape == (3, 5)


def test_static_formats_are_used_as_given():
    config = {
        "quantization_parameters": {"default_data_integer_bits": 2, "default_data_fractional_bits": 5, "default_data_keep_negatives": True}
    }
    model = pq.compile(MLP(), config, torch.randn(4, 16))
    data = [model.get_submodule(n.target) for n in quantizers(model) if n.target.endswith(".quantizer")]
    assert data
    assert all((q.minimum, q.maximum) == (-4.0, 4.0 - 2**-5) for q in data)


def test_rules_reach_their_layers_and_call_sites():
    config = {"preset": "fixed8", "layers": {"0": {"weight_bits": 4}, "ReLU": {"data_bits": 6}, "3": {"data_bits": 5}}}
    model = pq.compile(MLP(), config, torch.randn(64, 16))
    widths = {str(n.target): model.get_submodule(n.target) for n in quantizers(model)}
    assert widths["pq._0.weight_quantizer"].width == 4
    assert widths["pq._2.weight_quantizer"].width == 8
    assert widths["pq._1.quantizer"].width == 6
    assert widths["pq._3.quantizer"].width == 5
    with pytest.raises(pq.ConfigError) as caught:
        pq.compile(MLP(), {"preset": "fixed8", "layers": {"layerx.*": {"weight_bits": 4}}}, torch.randn(4, 16))
    assert caught.value.code == "PQ402"


def test_a_rule_for_a_convolution_holds_when_batchnorm_is_folded_into_it():
    net = ConvBN()
    for state in ("fresh", "trained"):
        config = {"preset": "fixed8", "layers": {"conv": {"weight_bits": 4}}}
        model = pq.compile(net, config, torch.randn(8, 1, 8, 8))
        assert model.get_submodule("pq.conv.weight_quantizer").width == 4, state
        net(torch.randn(8, 1, 8, 8))


def test_interface_formats_are_kept():
    config = {"preset": "fixed8", "inputs": {"input": {"format": "fixed<12,4>"}}, "outputs": {"0": {"format": "fixed<10,5,TRN,SAT>"}}}
    model = pq.compile(MLP(), config, torch.randn(64, 16))
    given = model.get_submodule("pq.input_1.quantizer")
    assert (given.minimum, given.maximum) == (-8.0, 8.0 - 2**-8)
    assert model.input_names == ("input",)
    frozen = model.freeze()
    out = frozen(100 * torch.randn(200, 16))
    assert torch.equal(out, (out * 32).floor() / 32)
    assert float(out.abs().max()) <= 16


@pytest.mark.parametrize("policy", ["align", "shared", "requant"])
def test_join_policies(policy):
    model = compiled(ResidualDigits(), torch.randn(32, 1, 8, 8), {"preset": "fixed8", "joins": {"policy": policy}})
    made = set(quantizers(model))
    joins = [n for n in model.graph_module.graph.nodes if is_join(n)]
    assert joins
    for join in joins:
        if policy == "shared":
            assert len({a.target for a in join.all_input_nodes}) == 1
            assert set(join.all_input_nodes) <= made
        if policy == "requant":
            assert all(u in made or u.target is F.relu for u in join.users)
    assert model.freeze().verify(torch.randn(16, 1, 8, 8), targets=("integer",)).ok


def test_wrong_shapes_are_refused_at_run_time():
    model = compiled(ConvBN(), torch.randn(4, 1, 8, 8))
    for wrong in (torch.randn(4, 1, 16, 16), torch.randn(4, 2, 8, 8), torch.randn(1, 8, 8)):
        with pytest.raises(pq.InputError) as caught:
            model(wrong)
        assert caught.value.code == "PQ409"
    with pytest.raises(pq.InputError, match="no input 'y'"):
        model(y=torch.randn(4, 1, 8, 8))
    with pytest.raises(pq.InputError):
        model(torch.randn(4, 1, 8, 8), torch.randn(4))


def test_checkpoints_that_do_not_fit_are_named_key_by_key():
    model = compiled(MLP(), torch.randn(4, 16))
    state = dict(model.state_dict())
    del state["0.weight"]
    state["tail.bias"] = torch.zeros(1)
    with pytest.raises(pq.TransferError) as caught:
        model.load_state_dict(state)
    assert {p.code for p in caught.value.problems} == {"PQ401"}
    assert "'0.weight'" in str(caught.value)
    assert "'tail.bias'" in str(caught.value)
    with pytest.raises(pq.TransferError, match="size mismatch"):
        model.load_state_dict({"0.weight": torch.zeros(1, 1)}, strict=False)
    model.load_state_dict({f"module.{k}": v for k, v in MLP().state_dict().items()})


def test_a_float_checkpoint_is_calibrated_again():
    net = MLP()
    x = torch.randn(64, 16)
    model = compiled(net, x)
    large = {k: 8 * v for k, v in net.state_dict().items()}
    model.load_state_dict(large)
    quantizer = model.get_submodule("pq._1.quantizer")
    with torch.no_grad():
        assert quantizer.maximum >= float((x @ large["0.weight"].T + large["0.bias"]).max()) / 2


def test_copies_are_independent_and_whole():
    model = compiled(Unused(), torch.randn(16, 8))
    twin = copy.deepcopy(model)
    x = torch.randn(4, 8)
    assert torch.equal(twin(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        twin.fc.weight.add_(1)
    assert not torch.equal(twin(x), model(x))
    assert twin.graph_module.get_parameter("fc.weight") is twin.fc.weight
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))
    assert again.graph_module.get_parameter("fc.weight") is again.fc.weight


def test_two_compiles_give_the_same_graph():
    one, two = (pq.compile(ResidualDigits(), PRUNED, torch.randn(4, 1, 8, 8)) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != pq.compile(ResidualDigits(), "fixed8", torch.randn(4, 1, 8, 8)).fingerprint


def test_the_text_shows_formats_modules_and_lines():
    text = compiled(MLP(), torch.randn(64, 16)).text()
    assert "linear(" in text
    assert "fixed<8," in text
    assert "models.py:" not in text.splitlines()[0]


def test_a_model_without_a_trace_of_batchnorm_trains_with_batch_statistics():
    net = ConvBN()
    fresh = compiled(net, torch.randn(16, 1, 8, 8))
    assert any("correction" in n for n, _ in fresh.named_modules())
    net(torch.randn(16, 1, 8, 8))
    trained = compiled(net, torch.randn(16, 1, 8, 8))
    assert not any("correction" in n for n, _ in trained.named_modules())


class ReservedName(nn.Module):
    def __init__(self):
        super().__init__()
        self.pq = nn.Linear(4, 2)

    def forward(self, x):
        return self.pq(x)


def test_the_reserved_name_is_refused():
    with pytest.raises(pq.TraceError, match="'pq'"):
        pq.compile(ReservedName(), "fixed8", torch.randn(2, 4))
