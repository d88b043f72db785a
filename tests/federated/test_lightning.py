"""The callback for Lightning, with the real library."""

import gc
import threading
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.federated.lightning import FederatedCallback
from tests.federated.page import run_snippet

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EXACT: dict[str, Any] = {"codec": {"name": "float32"}, "client": {"wait_seconds": 60.0}}


class Module(LightningModule):
    def __init__(self, breaks_at: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.breaks_at = breaks_at
        self.losses: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(loss.detach().float())
        if len(self.losses) == self.breaks_at:
            raise RuntimeError("the disk is gone")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def _loader() -> DataLoader[Any]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def _trainer(*callbacks: FederatedCallback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


MIXED = {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}


@pytest.mark.parametrize(("every", "updates"), [("epoch", 3), (2, 6), (5, 3)])
def test_alone_it_equals_training_without(every: Any, updates: int) -> None:
    plain, module = Module(), Module()
    _trainer(max_epochs=3, **MIXED).fit(plain, _loader())
    callback = FederatedCallback(every=every, settings=EXACT)
    threads = threading.active_count()
    _trainer(callback, max_epochs=3, **MIXED).fit(module, _loader())
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    last = callback.last
    assert last is not None
    assert last.version == updates - 1  # of 12 steps, each round made a version; the last one is not heard of any more
    assert last.sequence is not None
    assert last.num_examples == {"epoch": 64, 2: 32, 5: 32}[every]
    rounds = {"epoch": 8, 2: 4, 5: 4}[every]
    assert float(last.metrics["loss"]) == pytest.approx(float(torch.stack(module.losses[-rounds:]).mean()), rel=1e-2)
    assert threading.active_count() == threads
    with pytest.raises(TaskError, match="joined"):
        _ = callback.learning


def test_the_end_of_the_run_stops_the_trainer() -> None:
    module = Module()
    callback = FederatedCallback(every=2, settings=EXACT | {"stop": {"max_versions": 2}})
    trainer = _trainer(callback, max_epochs=100)
    trainer.fit(module, _loader())
    assert 4 <= trainer.global_step <= 6
    assert callback.last is not None
    assert callback.last.version <= 2


def test_an_exception_leaves_the_federation() -> None:
    threads = threading.active_count()
    callback = FederatedCallback(settings=EXACT)
    with pytest.raises(RuntimeError, match="disk"):
        _trainer(callback, max_epochs=2).fit(Module(breaks_at=10), _loader())
    assert threading.active_count() == threads
    _trainer(callback, max_epochs=1).fit(Module(), _loader())  # and may join again
    assert callback.last is not None
    assert callback.last.version == 0


def test_a_part_is_shared_under_its_own_names() -> None:
    names: list[list[str]] = []

    class Watched(FederatedCallback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            names.append(sorted(self.learning.global_state()))

    callback = Watched(part=lambda module: module.net, settings=EXACT)
    _trainer(callback, max_epochs=1).fit(Module(), _loader())
    assert names == [["0.bias", "0.weight", "2.bias", "2.weight"]]


@pytest.mark.parametrize("every", [0, -1, True, "batch", 1.5])
def test_every_is_an_epoch_or_steps(every: Any) -> None:
    with pytest.raises(ConfigError, match="every"):
        FederatedCallback(every=every)


def test_the_snippet_of_the_page_runs() -> None:
    module = Module()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    names: dict[str, Any] = {
        "Trainer": lambda max_epochs, callbacks: _trainer(*callbacks, max_epochs=max_epochs),
        "module": module,
        "loader": _loader(),
    }
    run_snippet("lightning", names)
    gc.collect()
    assert not all(map(torch.equal, module.parameters(), start))
