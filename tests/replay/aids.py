"""Logs to replay: made by a real aggregator, from random updates or from training that one client poisons."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.core import NewVersion
from llmos_stream.log import versions
from llmos_stream.log.versions import Origin, local_rule
from llmos_stream.replay.rebuild import Rebuilder, RebuildOutcome, Verdict
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.roles.aggregator.version_chain import Chain, Encoded
from llmos_stream.runtime import Offload
from llmos_stream.testing import RunningFederation, running_federation
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import CodecSpec
from tests.federation import federation_of
from tests.roles.aids import FLOAT32, LAYOUT, NUMEL, settings_for, update

RULES: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {"aggregation": {"buffer_size": 2, "clip_norm": 5.0}, "staleness": {"kind": "polynomial"}},
    "momentum": {"aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.5}},
    "nesterov": {
        "aggregation": {"buffer_size": 2},
        "server_optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
    },
    "adam": {"aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "adam", "lr": 0.03}},
    "fedasync": {"aggregation": {"strategy": "fedasync"}, "staleness": {"kind": "hinge", "a": 1.0, "b": 1.0}},
}
ROBUST: dict[str, dict[str, dict[str, Any]]] = {
    strategy: {"aggregation": {"strategy": strategy, "buffer_size": 3}, "staleness": {"kind": "polynomial"}}
    for strategy in ("median", "trimmed_mean", "krum", "multi_krum", "norm_bound")
}
CLIENTS = ("a", "b", "c")
FLIPPER = "flipper"
ANOTHER_BUILD = {"torch": "0.1", "cpu": "abacus"}


@contextlib.asynccontextmanager
async def running_from(broker: Broker, settings: Settings, initial: Initial) -> AsyncIterator[RunningFederation]:
    """An aggregator that begins with `initial`, until the block ends."""
    async with running_federation(initial, settings, broker) as running:
        await running.version(0)
        yield running


def random_delta(generator: torch.Generator) -> Tensor:
    return torch.randn(NUMEL, generator=generator)


@contextlib.contextmanager
def computed_elsewhere(number: int, shift: float) -> Iterator[None]:
    """Versions are made by another build meanwhile, and the weights of this one are off."""
    encode = Chain._encode_full

    def encode_another(chain: Chain, new: NewVersion, origin: Origin) -> Encoded:
        if new.number == number:
            new.weights.add_(shift)
        return encode(chain, new, origin)

    with patch.object(Chain, "_encode_full", encode_another), patch.object(versions, "build", lambda: ANOTHER_BUILD):
        yield


async def write_random(
    broker: Broker, federation: str, rule: str, count: int = 6, codec: CodecSpec = FLOAT32, **sections: Any
) -> Settings:
    """A run of random updates, some of them stale and in several chunks, under one of RULES or ROBUST."""
    given = {section: dict(fields) for section, fields in (RULES | ROBUST)[rule].items()}
    for section, fields in sections.items():
        given.setdefault(section, {}).update(fields)
    settings = settings_for(federation, **given)
    generator = torch.Generator().manual_seed(3)
    each = 1 if settings.aggregation.strategy == "fedasync" else settings.aggregation.buffer_size or 1
    initial = Initial(LAYOUT, random_delta(generator))
    async with running_from(broker, settings, initial) as running:
        for number in range(count):
            for place in range(each):
                client = CLIENTS[(number * each + place) % len(CLIENTS)]
                base = max(0, number - (number + place) % 3)
                records = update(
                    random_delta(generator),
                    100,
                    written=codec,
                    client_id=client,
                    sequence=number * each + place,
                    base_version=base,
                    num_examples=10 + 7 * place,
                )
                await running.send(records, client)
            await running.version(number + 1)
    return settings


async def write_poisoned(broker: Broker, federation: str, rounds: int = 6) -> Settings:
    """Real training on `blobs` by two clients and a third that has flipped its labels and claims many examples."""
    settings = settings_for(
        federation,
        task={"entry": "blobs", "shards": 2, "alpha": 100.0},
        aggregation={"buffer_size": 3},
        staleness={"kind": "polynomial"},
        client={"lr": 0.02},
    )
    task = load_task(settings.task, settings.client)
    initial = initial_of(task, settings)
    clients = {client: _local(task, settings) for client in ("good-0", "good-1", FLIPPER)}
    weights = initial.weights
    async with running_from(broker, settings, initial) as running:
        for number in range(rounds):
            for shard, (client, local) in enumerate(clients.items()):
                shift = 2 if client == FLIPPER else 0
                pairs = [batch for batch in task.train_batches(shard % 2) if isinstance(batch, tuple)]
                batches = [(inputs, (targets + shift) % 4) for inputs, targets in pairs]
                trained = local.train(weights, 0, [batches])
                examples = trained.num_examples * (2 if client == FLIPPER else 1)
                await running.publish(trained.delta, client, num_examples=examples)
            weights = (await running.version(number + 1)).weights
    return settings


def _local(task: Task, settings: Settings) -> LocalModel:
    model = task.model()
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), settings.task.share)


@contextlib.asynccontextmanager
async def replay_log(broker: Broker, settings: Settings) -> AsyncIterator[ReplayLog]:
    async with (
        Offload(2) as offload,
        ReplayLog(federation_of(broker, settings, offload), local_rule(settings).names) as log,
    ):
        yield log


async def verdicts_of(log: ReplayLog, numbers: range | None = None) -> list[Verdict]:
    return [verdict async for verdict in Rebuilder(log, log.index.numbers if numbers is None else numbers).verdicts()]


def outcomes(verdicts: list[Verdict]) -> list[RebuildOutcome]:
    return [verdict.outcome for verdict in verdicts]


def topics_of(settings: Settings) -> Topics:
    return Topics(settings.federation.name)
