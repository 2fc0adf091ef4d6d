"""A compiled model trains under DistributedDataParallel: after one step both ranks hold the same parameters and masks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pquant_fx as pq
from pquant_fx.graph.batch_correction import BatchCorrection
from tests.models import ConvBN
from tests.ranks import process_group

CONFIG = {
    "preset": "fixed8",
    "training_parameters": {"pretraining_epochs": 0},
    "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5},
}


def worker(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        torch.manual_seed(0)
        net = ConvBN()
        examples = torch.randn(16, 1, 8, 8)
        model = pq.compile(net, CONFIG, examples)
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        torch.manual_seed(100 + rank)  # each rank sees other data
        x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
        with pq.session(parallel, epochs=1, steps_per_epoch=1) as s:
            parallel.train()
            (F.cross_entropy(parallel(x), y) + s.loss()).backward()
            optimizer.step()
            s.step()
            log = s.epoch_end()
        own_gradient = torch.autograd.grad(F.cross_entropy(model.train()(x), y), model.get_parameter("head.weight"))[0]
        torch.save(
            {"state": model.state_dict(), "log": log, "gradient": own_gradient, "before": net.state_dict()}, f"{folder}/rank{rank}.pt"
        )


def test_one_optimizer_step_is_equal_on_both_ranks(tmp_path: Path):
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    parameters = [k for k in one["state"] if not k.endswith(("running_mean", "running_var"))]
    different = [k for k in parameters if not torch.equal(one["state"][k], two["state"][k])]
    assert different == []
    assert one["log"] == two["log"]
    assert one["log"]["sparsity"] > 0.4
    # the test can fail: the ranks saw different data, and the step changed the weights
    assert not torch.equal(one["gradient"], two["gradient"])
    assert not torch.equal(one["state"]["head.weight"], one["before"]["head.weight"])


def measure(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        y = torch.load(f"{folder}/values.pt", weights_only=True)[rank].requires_grad_()
        torch.save(statistics_of(y, synchronised=True), f"{folder}/rank{rank}.pt")


def statistics_of(y: torch.Tensor, synchronised: bool) -> dict[str, torch.Tensor]:
    """The corrected value, the running buffers after it, and the gradient of the sum of its squares."""
    mean, variance, batches = torch.zeros(3), torch.ones(3), torch.tensor(0)
    gamma, beta = torch.tensor([1.0, -0.5, 0.25]), torch.tensor([0.5, 0.0, 1.0])
    out = BatchCorrection(0.1, 1e-5, synchronised).train()(y, mean, variance, batches, gamma, beta)
    out.square().sum().backward()
    return {"out": out.detach(), "mean": mean, "variance": variance, "batches": batches, "gradient": y.grad}


def test_synchronised_statistics_are_those_of_all_ranks_together(tmp_path: Path):
    halves = [torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)) * n + n for n in (5, 3)]
    torch.save(halves, tmp_path / "values.pt")
    mp.spawn(measure, args=(2, str(tmp_path)), nprocs=2)
    together = statistics_of(torch.cat(halves).requires_grad_(), synchronised=False)
    ranks = [torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)]
    torch.testing.assert_close(torch.cat([found["out"] for found in ranks]), together["out"], rtol=1e-4, atol=1e-4)
    for found in ranks:
        for name in ("mean", "variance", "batches"):
            torch.testing.assert_close(found[name], together[name], rtol=1e-4, atol=1e-4)
    # each rank adds its own copy of the loss: the gradient of two
    torch.testing.assert_close(torch.cat([r["gradient"] for r in ranks]), 2 * together["gradient"], rtol=1e-3, atol=1e-4)
