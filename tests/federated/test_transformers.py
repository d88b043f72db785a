"""The callback for the Trainer of Hugging Face, with the real library: GPT-2, bfloat16 and accumulated gradients."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from llmos_stream.broker import connect
from llmos_stream.federated.transformers import FederatedCallback
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import quick_settings, running_federation
from tests.conftest import KafkaNode
from tests.federated.page import run_snippet

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

EXACT: dict[str, Any] = {"codec": {"name": "float32"}, "client": {"wait_seconds": 60.0}}
EXAMPLES = 24


class Texts(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(12) * (index % 3 + 1)) % 40
        return {"input_ids": tokens, "labels": tokens}


def _model() -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drops: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, **drops))


def _arguments(folder: Path, *, batch: int = 4, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        bf16=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        optim="sgd",  # AdamW makes steps of the rounding, where a gradient is nought
        learning_rate=0.3,
        lr_scheduler_type="constant",
        seed=3,
        **options,
    )


def _trained(folder: Path, *callbacks: FederatedCallback, **options: Any) -> tuple[GPT2LMHeadModel, list[float], int]:
    """The model, the losses of its steps, and how many those were."""
    model = _model()
    return _run(model, _trainer(model, folder, *callbacks, **options))


def _trainer(model: GPT2LMHeadModel, folder: Path, *callbacks: FederatedCallback, **options: Any) -> Trainer:
    return Trainer(model, _arguments(folder, **options), train_dataset=Texts(), callbacks=list(callbacks))


def _run(model: GPT2LMHeadModel, trainer: Trainer) -> tuple[GPT2LMHeadModel, list[float], int]:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses, trainer.state.global_step


@pytest.mark.parametrize(("every", "updates", "examples"), [("epoch", 4, 24), (1, 12, 8), (5, 3, 16)])
def test_alone_it_equals_training_without(every: Any, updates: int, examples: int, tmp_path: Path) -> None:
    plain, _, _ = _trained(tmp_path, num_train_epochs=4)
    threads = threading.active_count()
    callback = FederatedCallback(every=every, settings=EXACT)
    federated, losses, _ = _trained(tmp_path, callback, num_train_epochs=4)
    for one, other in zip(federated.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0.0)
    last = callback.last
    assert last is not None
    assert (last.version, last.num_examples) == (updates - 1, examples)
    steps = examples // 8
    assert float(last.metrics["loss"]) == pytest.approx(sum(losses[-steps:]) / steps, rel=2e-2)
    assert threading.active_count() == threads


def test_the_end_of_the_run_stops_the_trainer(tmp_path: Path) -> None:
    callback = FederatedCallback(every=2, settings=EXACT | {"stop": {"max_versions": 2}})
    _, _, steps = _trained(tmp_path, callback, num_train_epochs=100)
    assert 4 <= steps <= 7


def test_an_exception_leaves_the_federation(tmp_path: Path) -> None:
    threads = threading.active_count()
    callback = FederatedCallback(every=2, settings=EXACT)

    class Breaks(Texts):
        left = 20

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            Breaks.left -= 1
            if not Breaks.left:
                raise RuntimeError("the disk is gone")
            return super().__getitem__(index)

    model = _model()
    trainer = Trainer(model, _arguments(tmp_path), train_dataset=Breaks(), callbacks=[callback])
    with pytest.raises(RuntimeError, match="disk"):
        trainer.train()
    trainer.train()  # goes on, in the federation of a new client
    assert callback.last is not None
    assert threading.active_count() == threads
    assert not model._forward_hooks


def test_the_snippet_of_the_page_runs(tmp_path: Path) -> None:
    model = _model()
    before = model.transformer.wte.weight.detach().clone()
    arguments = _arguments(tmp_path, num_train_epochs=1)
    names: dict[str, Any] = {"Trainer": Trainer, "model": model, "arguments": arguments, "dataset": Texts()}
    run_snippet("transformers", names)
    assert not torch.equal(model.transformer.wte.weight, before)


@pytest.mark.kafka
async def test_gpt2_through_kafka(kafka: KafkaNode, federation: str, tmp_path: Path) -> None:
    settings = quick_settings(
        federation,
        broker={"bootstrap_servers": kafka.bootstrap_servers},
        aggregation={"buffer_size": 2, "deadline_seconds": 600.0},
        codec={"name": "int8"},
        stop={"max_versions": 4},
    )

    def site(name: str) -> tuple[GPT2LMHeadModel, Trainer]:
        own = settings.changed(client={"id": name, "state_dir": tmp_path / name})
        model = _model()
        return model, _trainer(model, tmp_path, FederatedCallback(every=3, settings=own), num_train_epochs=100)

    # One after the other: a new Trainer sets up accelerate for its whole process.
    sites = [site(name) for name in ("a", "b")]
    async with connect(settings.broker) as broker, running_federation(_model(), settings, broker) as running:
        (one, losses, _), (other, _, _) = await asyncio.gather(*(asyncio.to_thread(_run, *each) for each in sites))
        version = await running.version(4)
    assert sum(losses[-3:]) < sum(losses[:3])
    state = version.layout.unflatten(version.weights)
    for model in (one, other):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name in state)


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.timeout(1800)
async def test_gpt2_small_through_kafka(kafka: KafkaNode, federation: str, tmp_path: Path) -> None:
    """124 million parameters: int4 updates, and versions as deltas on what the client has."""
    settings = quick_settings(
        federation,
        broker={"bootstrap_servers": kafka.bootstrap_servers},
        codec={"name": "int4"},
        versions={"full_every": 16},
        stop={"max_versions": 2},
    ).changed(client={"id": "a", "state_dir": tmp_path / "a", "wait_seconds": 600.0})
    model = GPT2LMHeadModel(GPT2Config())
    initial = Initial.of(model, "all")
    callback = FederatedCallback(every=2, settings=settings)
    arguments = _arguments(tmp_path, num_train_epochs=100, batch=1)
    trainer = Trainer(model, arguments, train_dataset=Texts(), callbacks=[callback])
    async with connect(settings.broker) as broker, running_federation(initial, settings, broker) as running:
        await asyncio.to_thread(trainer.train)
        version = await running.version(2)
    assert 4 <= trainer.state.global_step <= 5
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert callback.last is not None
    assert callback.last.sent_bytes < callback.last.raw_bytes / 7
    state = version.layout.unflatten(version.weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name in state)
