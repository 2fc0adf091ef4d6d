"""The Lightning callback, against the real package: it trains as a loop with a session does, also accumulated and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pquant_fx as pq
from tests.resumable import EPOCHS, STEPS, compiled, data, differences

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]  # the warnings of another package's internals
RATE = 5e-2


def loader(size: int = 32) -> DataLoader:
    return DataLoader(TensorDataset(*data()), size)


def trainer(epochs: int = EPOCHS, folder: Path | None = None, **more: Any) -> Any:
    import lightning

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(max_epochs=epochs, enable_checkpointing=folder is not None, default_root_dir=folder, **quiet, **more)


def module(name: str, dropout: float = 0.1) -> Any:
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = compiled(name, dropout)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), RATE)

    made = Classifier()
    torch.manual_seed(1)
    return made


def own_loop(name: str, accumulate: int = 1, autocast: bool = False) -> tuple[pq.CompiledModel, list[dict[str, float]]]:
    model, rows = compiled(name), []
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    with pq.session(model, EPOCHS, STEPS, optimizer) as s:
        for _ in range(EPOCHS):
            model.train()
            for n, (x, y) in enumerate(loader(32 // accumulate)):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = F.cross_entropy(model(x), y) / accumulate
                (loss if n % accumulate else loss + s.loss()).backward()
                if (n + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    s.step()
            rows.append(s.epoch_end())
    return model, rows


@pytest.mark.parametrize(("name", "accumulate"), [("hgq", 1), ("hgq", 4), ("magnitude", 2)])
def test_it_trains_as_a_session_does(name, accumulate):
    ours = module(name)
    run = trainer(accumulate_grad_batches=accumulate, callbacks=[pq.lightning_callback()])
    run.fit(ours, loader(32 // accumulate))
    expected, rows = own_loop(name, accumulate)
    assert differences(ours.model.state_dict(), expected.state_dict()) == []
    assert {k: float(v) for k, v in run.callback_metrics.items()} == pytest.approx(rows[-1])
    if name == "hgq":
        without = module(name)
        trainer(accumulate_grad_batches=accumulate).fit(without, loader(32 // accumulate))
        assert without.model.ebops().total != expected.ebops().total  # the test can fail: the extra loss matters


def test_bfloat16(tmp_path):
    ours = module("hgq")
    trainer(precision="bf16-mixed", callbacks=[pq.lightning_callback(ours.model)]).fit(ours, loader())
    assert differences(ours.model.state_dict(), own_loop("hgq", autocast=True)[0].state_dict()) == []


def test_its_checkpoints_go_on(tmp_path):
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    class Stop(Exception): ...

    class Breaks(Callback):
        def on_train_epoch_start(self, run, pl_module):
            if run.current_epoch == 3:
                raise Stop

    straight, first, second = (module("magnitude", dropout=0.0) for _ in range(3))  # Lightning keeps no random numbers
    trainer(callbacks=[pq.lightning_callback()]).fit(straight, loader())
    saves = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    with pytest.raises(Stop):
        trainer(folder=tmp_path, callbacks=[pq.lightning_callback(), saves, Breaks()]).fit(first, loader())
    run = trainer(callbacks=[pq.lightning_callback()])
    run.fit(second, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert differences(straight.model.state_dict(), second.model.state_dict()) == []


def test_a_checkpoint_from_between_the_last_step_and_the_end_of_an_epoch_goes_on(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    straight, second = (module("magnitude", dropout=0.0) for _ in range(2))
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2 * STEPS, save_top_k=-1)
    trainer(folder=tmp_path, callbacks=[pq.lightning_callback(), saves]).fit(straight, loader())
    run = trainer(callbacks=[pq.lightning_callback()])
    run.fit(second, loader(), ckpt_path=tmp_path / f"step={2 * STEPS}.ckpt")
    assert differences(straight.model.state_dict(), second.model.state_dict()) == []


def test_wrong_uses_are_named():
    import lightning

    class Empty(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 2)

        def training_step(self, batch: Any, index: int) -> None: ...

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(pq.TrainingError, match="holds 0 compiled models"):
        trainer(callbacks=[pq.lightning_callback()]).fit(Empty(), loader())
    with pytest.raises(pq.TrainingError, match="length of the training"):
        trainer(-1, max_steps=3, callbacks=[pq.lightning_callback()]).fit(module("fixed8"), loader())
