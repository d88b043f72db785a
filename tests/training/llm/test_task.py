"""The task `llm` from its settings to a run of several sites on the in-process broker."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmos_stream.config import load
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.runtime import Shutdown
from llmos_stream.testing import run_sites
from llmos_stream.testing.language_models import write_tiny_model
from llmos_stream.training import load_task
from llmos_stream.training.llm.base import load_base, source_of
from llmos_stream.training.llm.task import LlmTask, share_of_lr
from llmos_stream.training.local import LocalTrainer, evaluate
from llmos_stream.training.model_evaluator import ModelEvaluator
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import Event, EventKind
from tests.training.llm.aids import Site, llm_settings, llm_task, write_lines, write_texts

_FULL = pytest.mark.full


@pytest.mark.parametrize(
    "mode", ["ffa", "exact", pytest.param("alternate", marks=_FULL), pytest.param("separate", marks=_FULL)]
)
def test_sites_learn_together(mode: str, tiny: Path, tmp_path: Path) -> None:
    sites = {f"site-{place}": write_texts(tmp_path / f"{place}.jsonl", 12, skip=place) for place in range(2)}
    test = write_texts(tmp_path / "test.jsonl", 8, skip=3)
    options = {
        "model": str(tiny),
        "sequence": 16,
        "test": test,
        "lora": {"rank": 4, "aggregation": mode, "targets": "all-linear"},
    }
    settings = load(
        {
            "federation": {"name": "texts"},
            "task": {"entry": "llm", "options": options},
            "client": {"batch_size": 4, "lr": 0.03, "wait_seconds": 0.2},
            "aggregation": {"buffer_size": 2},
            "stop": {"max_versions": 4},
        }
    )
    task = load_task(settings.task, settings.client)
    batches = task.test_batches(4)
    assert batches is not None
    before = evaluate(task.model(), batches, task.loss)
    after = evaluate(run_sites(settings, sites), batches, task.loss)
    assert after["loss"] < before["loss"] - 0.08


def test_an_update_says_on_how_many_tokens_it_was_trained(tiny: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", 6)
    settings = llm_settings(tiny, path, lora={"rank": 2}, holdout=0).changed(
        client={"id": "a"}, aggregation={"buffer_size": 1}, stop={"max_versions": 1}
    )
    events: list[Event] = []
    asyncio.run(run_embedded(settings, [settings], events.append, Shutdown()))
    sent: dict[str, Any] = dict(next(event.data for event in events if event.kind is EventKind.UPDATE_SENT))
    task = load_task(settings.task, settings.client)
    assert sent["metrics"]["tokens"] == task.num_train_examples()


def test_a_whole_model_is_trained_and_shared_without_an_adapter(tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, write_texts(tmp_path / "a.jsonl"), lora={"rank": 0})
    task = load_task(settings.task, settings.client)
    model = task.model()
    local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), task.share)
    assert local.layout.numel == sum(one.numel() for one in model.parameters())
    assert "model.embed_tokens.weight" in {spec.name for spec in local.layout.tensors}
    assert "lm_head.weight" in local.layout.tied
    done = local.train(local.weights(), 0, [task.train_batches()] * 3)
    assert done.metrics["loss"] < math.log(384) - 0.5  # of a guess among all tokens


def test_a_site_and_the_evaluator_measure_loss_perplexity_and_token_accuracy(tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, write_texts(tmp_path / "a.jsonl"), test=write_texts(tmp_path / "b.jsonl", 6))
    task = load_task(settings.task, settings.client)
    local = LocalModel(LocalTrainer(model := task.model(), task.optimizer(model), task.loss), task.share)
    central = ModelEvaluator(task, settings.task, 4).evaluate(0, local.layout, local.weights())
    held = task.validation_batches()
    assert held is not None
    here = evaluate(model, held, task.loss, task.metrics())
    for found in (central.metrics, here):
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-5)
        assert 0 <= found["accuracy"] <= 1
    batches: Any = task.test_batches(4)
    assert central.num_examples == sum(len(targets) for _, targets in batches)  # tokens


def test_what_is_held_back_is_not_trained_on(tiny: Path, tmp_path: Path) -> None:
    task = llm_task(tiny, write_lines(tmp_path / "a.jsonl", [{"text": f"law {n}"} for n in range(40)]), packing=False)
    held, kept = (
        {tuple(targets.tolist()) for targets in _single(batches)}
        for batches in (task.validation_batches(), task.train_batches())
    )
    assert len(held) == 4
    assert len(kept) == 36
    assert not held & kept


def _single(batches: Any) -> list[Any]:
    sequences = batches._sequences
    return [sequences[torch.tensor([row])].batch()[1] for row in range(len(sequences))]


def test_what_is_cut_is_told_with_its_count(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = [{"prompt": "peace", "completion": " with all nations" * 8}, {"prompt": "gold" * 30, "completion": "x"}]
    path = write_lines(tmp_path / "a.jsonl", [*answers, {"prompt": "a", "completion": "b"}])
    llm_task(tiny, path, holdout=0).train_batches()
    (record,) = caplog.records
    assert "2 examples are longer than options.sequence (16 tokens)" in record.getMessage()
    assert "1 examples have nothing to learn" in record.getMessage()


def test_a_file_with_nothing_to_learn_is_told(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is nothing to learn in it"):
        llm_task(tiny, write_lines(tmp_path / "a.jsonl", [])).train_batches()


def test_the_learning_rate_follows_the_schedule_of_a_round(tiny: Path, tmp_path: Path) -> None:
    task = llm_task(tiny, write_texts(tmp_path / "a.jsonl"), schedule="cosine", warmup=0.2, holdout=0)
    model = task.model()
    optimizer, batches = task.optimizer(model), task.train_batches()
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    LocalTrainer(model, optimizer, task.loss).run_epoch(batches)
    assert len(rates) == len(batches)
    assert rates == [0.01 * share_of_lr(task.llm, step, len(batches)) for step in range(len(batches))]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.05 * max(rates)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1.0] * 4), ("linear", [1.0, 0.75, 0.5, 0.25]), ("cosine", [1.0, 0.854, 0.5, 0.146])],
)
def test_a_schedule_in_numbers(schedule: str, expected: list[float], tiny: Path) -> None:
    options = llm_task(tiny, schedule=schedule).llm
    assert [share_of_lr(options, step, 4) for step in range(4)] == pytest.approx(expected, abs=1e-3)


def test_the_rate_is_its_own_where_none_is_set(tiny: Path) -> None:
    settings = load({"task": {"entry": "llm", "options": {"model": str(tiny)}}})
    task = load_task(settings.task, settings.client)
    assert task.optimizer(task.model()).param_groups[0]["lr"] == 2e-4


def test_the_optimizer_goes_on_from_round_to_round_where_that_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl")
    for keep, expected in ((False, [1, 1, 1]), (True, [1, 2, 3])):
        site, taken = Site(llm_settings(tiny, path, keep_optimizer=keep, schedule="linear")), list[float]()
        weights, batch = site.local.weights(), next(iter(site.task.train_batches()))
        for version in range(3):
            site.local.trainer.optimizer = site.task.optimizer(site.local.model)
            weights = weights + site.local.train(weights, version, [[batch]]).delta
            states = list(site.local.trainer.optimizer.state.values())
            assert site.local.trainer.optimizer.param_groups[0]["lr"] == 0.01  # the schedule is that of a round
            taken.append({float(one["step"]) for one in states}.pop())
        assert taken == expected


def test_in_bfloat16_adapters_stay_in_float32_and_learn(tiny: Path, tmp_path: Path) -> None:
    for mode in ("ffa", "exact"):
        settings = llm_settings(
            tiny, write_texts(tmp_path / "a.jsonl"), dtype="bfloat16", checkpointing=True, lora={"aggregation": mode}
        )
        task = load_task(settings.task, settings.client)
        model = task.model()
        assert next(model.parameters()).dtype is torch.bfloat16
        local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss, task.hooks()), task.share)
        assert {spec.dtype for spec in local.layout.tensors if "lora" in spec.name} == {"float32"}
        begin = local.weights()
        done = local.train(begin, 0, [task.train_batches()] * 2)
        first, last = (
            evaluate(model, task.train_batches(), task.loss)["loss"]
            for weights in (begin, begin + done.delta)
            if local.load(weights) is not None
        )
        assert last < first - 0.05


def test_checkpointing_gives_the_gradients_that_are_there_without(tiny: Path, tmp_path: Path) -> None:
    path, deltas = write_texts(tmp_path / "a.jsonl"), list[torch.Tensor]()
    for checkpointing in (False, True):
        settings = llm_settings(tiny, path, checkpointing=checkpointing)
        task = load_task(settings.task, settings.client)
        model = task.model()
        local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), task.share)
        deltas.append(local.train(local.weights(), 0, [task.train_batches()]).delta)
    torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-4, atol=1e-6)


def test_frozen_weights_are_pages_of_the_file(tiny: Path) -> None:
    """Two models of one process have them in two mappings, and neither has a copy."""
    model = load_base(source_of(str(tiny)), torch.float32)
    path = tiny / "model.safetensors"
    mapped = _mapped(path)
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    assert mapped
    inside = [one for one in model.parameters() if any(begin <= one.data_ptr() < end for begin, end in mapped)]
    assert sum(one.numel() * one.element_size() for one in inside) == size
    stored = load_file(path)
    for name, one in model.named_parameters():
        assert torch.equal(one, stored[name])


def _mapped(path: Path) -> list[tuple[int, int]]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


def test_what_is_written_to_a_mapped_weight_does_not_reach_the_file(tiny: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_base(source_of(str(tmp_path)), torch.float32)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_configuration_alone_begins_with_the_weights_of_the_seed(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    weights = []
    for seed in (0, 0, 1):
        settings = llm_settings(tmp_path, lora={"rank": 0}).changed(task={"seed": seed})
        weights.append(load_task(settings.task, settings.client).model().state_dict()["inner.lm_head.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "task.options: .*model"),
        ({"model": "./absent"}, "options.model: there is no folder and no GGUF file"),
        ({"model": "{tiny}", "sequence": 1}, "sequence"),
        ({"model": "{tiny}", "lora.aggregation": "mean"}, "lora"),
        ({"model": "{tiny}", "length": 5}, "length"),
        ({"model": "{empty}"}, "holds neither a config.json nor a GGUF file"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(options: dict[str, Any], why: str, tiny: Path, tmp_path: Path) -> None:
    given = json.loads(json.dumps(options).replace("{tiny}", str(tiny)).replace("{empty}", str(tmp_path)))
    settings = load({"task": {"entry": "llm", "options": given}})
    with pytest.raises((TaskError, ConfigError), match=why) as found:
        load_task(settings.task, settings.client).model()
    assert "\n" not in str(found.value)


def test_options_are_the_same_from_a_flag_and_from_a_table(tiny: Path) -> None:
    flag = load({"task": {"entry": "llm", "options": f"model={tiny},lora.rank=4,lora.targets=q_proj k_proj"}})
    table = llm_settings(tiny, lora={"rank": 4, "targets": ["q_proj", "k_proj"]}, sequence=512)
    one, other = (LlmTask(settings.task, settings.client).llm for settings in (flag, table))
    assert one == other
