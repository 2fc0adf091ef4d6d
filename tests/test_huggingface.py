"""The Hugging Face callback, against the real package: it trains as a loop with a session does, also accumulated and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pquant_fx as pq
from tests.resumable import EPOCHS, STEPS, compiled, data, differences

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]  # the warnings of another package's internals
RATE = 5e-2


class Samples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(data()[0])

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        x, y = data()
        return {"x": x[n], "labels": y[n]}


class ForTrainer(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = compiled(name, dropout=0.0)  # the Trainer draws random numbers of its own

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(model: nn.Module, folder: Path, accumulate: int = 1, callbacks: Any = (), **more: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(self.train_dataset, self.args.per_device_train_batch_size)

    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 32 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": 0.5,
        "seed": 1,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    fixed = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    arguments = TrainingArguments(str(folder), **(settings | more))
    return InOrder(model, arguments, train_dataset=Samples(), optimizers=(optimizer, fixed), callbacks=list(callbacks))


def own_loop(name: str, accumulate: int = 1) -> tuple[ForTrainer, list[dict[str, float]]]:
    outer, rows = ForTrainer(name), []
    model = outer.model
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    x, y = data()
    size = 32 // accumulate
    with pq.session(model, EPOCHS, STEPS, optimizer) as s:
        for _ in range(EPOCHS):
            model.train()
            for n, rows_of in enumerate(torch.arange(len(x)).split(size)):
                loss = F.cross_entropy(model(x[rows_of]), y[rows_of]) / accumulate
                (loss if n % accumulate else loss + s.loss()).backward()
                if (n + 1) % accumulate == 0:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    optimizer.zero_grad()
                    s.step()
            rows.append(s.epoch_end())
    return outer, rows


@pytest.mark.parametrize(("name", "accumulate"), [("hgq", 1), ("hgq", 4), ("magnitude", 2)])
def test_it_trains_as_a_session_does(name, accumulate, tmp_path):
    ours = ForTrainer(name)
    run = trainer(ours, tmp_path, accumulate, [pq.huggingface_callback()])
    run.train()
    expected, rows = own_loop(name, accumulate)
    assert differences(ours.state_dict(), expected.state_dict()) == []
    logged = [row for row in run.state.log_history if "sparsity" in row]
    assert [{k: row[k] for k in rows[0]} for row in logged] == [pytest.approx(row) for row in rows]
    assert not ours.model._forward_hooks
    if name == "hgq":
        without = ForTrainer(name)
        trainer(without, tmp_path, accumulate).train()
        assert without.model.ebops().total != expected.model.ebops().total  # the test can fail: the extra loss matters


def test_its_checkpoints_go_on(tmp_path):
    from transformers import TrainerCallback

    class Stop(Exception): ...

    class Breaks(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if round(state.epoch) == 3:
                raise Stop

    straight, first, second = (ForTrainer("magnitude") for _ in range(3))
    trainer(straight, tmp_path / "a", callbacks=[pq.huggingface_callback()]).train()
    with pytest.raises(Stop):
        trainer(first, tmp_path / "b", callbacks=[pq.huggingface_callback(), Breaks()], save_strategy="epoch").train()
    run = trainer(second, tmp_path / "b", callbacks=[pq.huggingface_callback()], save_strategy="epoch")
    run.train(resume_from_checkpoint=True)
    assert differences(straight.state_dict(), second.state_dict()) == []
    (tmp_path / "b" / f"checkpoint-{EPOCHS * STEPS}" / "pquant_fx.pt").write_bytes(b"")
    with pytest.raises(pq.TransferError, match="can not be read"):
        trainer(ForTrainer("magnitude"), tmp_path / "b", callbacks=[pq.huggingface_callback()]).train(resume_from_checkpoint=True)


def test_wrong_uses_are_named(tmp_path):
    with pytest.raises(pq.TrainingError, match="no whole number of epochs"):
        trainer(ForTrainer("fixed8"), tmp_path, callbacks=[pq.huggingface_callback()], max_steps=6).train()

    class Unused(ForTrainer):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            loss = F.cross_entropy(self.model.get_submodule("head").weight[:, :5], torch.zeros(5, dtype=torch.long))
            return {"loss": loss, "logits": self.model(x)}

    with pytest.raises(pq.TrainingError, match="did not arrive"):
        trainer(Unused("hgq"), tmp_path, callbacks=[pq.huggingface_callback()]).train()
