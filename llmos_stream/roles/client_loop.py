"""The client role: join, then take the newest version, train, publish, until the run ends or it is time to leave."""

import logging
import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import FederationFinished
from llmos_stream.roles.client import Client, wait_for_topics
from llmos_stream.roles.client_state import ClientState
from llmos_stream.roles.local_model import LocalModel, Trained
from llmos_stream.roles.versions import Version
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import Batch, LocalTrainer, Task

log = logging.getLogger(__name__)

_FIRST_VERSION_SECONDS = 1.0
_MOST_DOUBLINGS = 6


def client_id_of(settings: Settings) -> str:
    """The client's name: as set, or this host's and the shard's."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname()).lstrip("._-") or "client"
    return settings.client.id or f"{host[:100]}-{settings.client.shard}"


def state_folder(settings: Settings, client_id: str) -> Path:
    """Where this client keeps its state: as set, or a folder of its own in the user's state folder."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return settings.client.state_dir or base / "llmos-stream" / settings.federation.name / client_id


async def run_client(
    broker: Broker, settings: Settings, task: Task, state: ClientState, offload: Offload, shutdown: Shutdown
) -> int:
    """Take part until the run ends, `client.max_updates` is reached or a stop is asked for.

    Returns how many updates were sent.
    """
    own = settings.client
    if await shutdown.wait(own.join_delay_seconds):
        return 0
    if not await wait_for_topics(broker, Topics(settings.federation.name), shutdown):
        return 0
    local = await offload.run(_local_model, task, settings)
    client_id = client_id_of(settings)
    updates = repeats = 0
    async with Client(broker, settings, client_id, local.layout, state, offload, shutdown) as client:
        await client.join(task.num_train_examples(own.shard))
        reason = "stopped"
        version: Version | None = None
        batches = task.train_batches(own.shard)  # one object: it orders each of its passes differently
        try:
            while not (shutdown.requested or client.finished or updates == own.max_updates):
                if version is None:
                    version = await client.newest(None, _FIRST_VERSION_SECONDS)
                    continue
                trained = await _train(client, local, version, task, batches, settings, offload, shutdown)
                if trained is None:
                    break
                published = await client.publish(
                    trained.delta,
                    version.head.number,
                    num_examples=trained.num_examples,
                    metrics=trained.metrics,
                    train_seconds=trained.seconds,
                )
                updates += 1
                log.info(
                    "update %d on version %d: loss %.4f, %d examples, %d bytes",
                    published.head.sequence,
                    version.head.number,
                    trained.metrics["loss"],
                    trained.num_examples,
                    published.sent_bytes,
                )
                fresh = await client.newest(version.head.number, own.wait_seconds * 2**repeats)
                # Nobody folds at present, or slowly: another update on the same version is worth less each time.
                repeats = 0 if fresh else min(repeats + 1, _MOST_DOUBLINGS)
                version = fresh or version
        except FederationFinished:
            log.info("the run ended while this client was training")
        if client.finished:
            reason = f"run ended: {client.finished.reason}"
        elif updates == own.max_updates:
            reason = "client.max_updates reached"
        log.info("leaving after %d updates: %s", updates, reason)
        await client.leave(reason, updates)
    return updates


def _local_model(task: Task, settings: Settings) -> LocalModel:
    model = task.model()
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), settings.task.share)


async def _train(
    client: Client,
    local: LocalModel,
    version: Version,
    task: Task,
    batches: Iterable[Batch],
    settings: Settings,
    offload: Offload,
    shutdown: Shutdown,
) -> Trained | None:
    """One update's training at this client's speed; None when a stop or the end of the run cut it short."""
    own = settings.client
    # Momentum gathered on an older version does not belong to this one.
    local.trainer.optimizer = task.optimizer(local.trainer.model)
    trained = await offload.run(local.train, version.weights, [batches] * own.epochs, lambda: shutdown.requested)
    # A slower device computes the same, later.
    seconds = max(trained.seconds, own.min_train_seconds) / own.speed
    if trained.stopped or not await client.rest(max(seconds - trained.seconds, 0.0)):
        return None
    return replace(trained, seconds=seconds)
