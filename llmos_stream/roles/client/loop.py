"""The client role: join, then take the newest version, train, publish, until the run ends or it is time to leave."""

import logging
import math
import os
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import FederationFinished, Rejected
from llmos_stream.log.record_tracing import update_span
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.session import Client, Published
from llmos_stream.roles.client.state import ClientState
from llmos_stream.roles.shared_model import LocalModel, Trained
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import keep_trying
from llmos_stream.telemetry.tracing import span
from llmos_stream.training import LocalTrainer, Task

logger = logging.getLogger(__name__)

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

    While the broker does not answer it keeps trying and goes on where it was. Returns how many updates were sent.
    """
    if await shutdown.wait(settings.client.join_delay_seconds):
        return 0
    participation = _Participation(broker, settings, task, state, offload, shutdown)
    await keep_trying(participation.take_part, shutdown, "joining again")
    return participation.updates


class _Participation:
    """What a client keeps while it loses the broker and finds it again."""

    def __init__(
        self, broker: Broker, settings: Settings, task: Task, state: ClientState, offload: Offload, shutdown: Shutdown
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._own = settings.client
        self._task = task
        self._state = state
        self._offload = offload
        self._shutdown = shutdown
        self._batches = task.train_batches(
            settings.client.shard
        )  # one object: it orders each of its passes differently
        self._local: LocalModel | None = None
        self._version: Version | None = None
        self._joined = False
        self._repeats = 0
        self.updates = 0

    async def take_part(self) -> None:
        """Raises BrokerUnavailable when the broker does not answer: call it again then."""
        if not await wait_for_topics(self._broker, Topics(self._settings.federation.name), self._shutdown):
            return
        if self._local is None:
            self._local = await self._offload.run(_local_model, self._task, self._settings)
        local = self._local
        client_id = client_id_of(self._settings)
        async with Client(
            self._broker, self._settings, client_id, local.layout, self._state, self._offload, self._shutdown
        ) as client:
            if not self._joined:
                await client.join(self._task.num_train_examples(self._own.shard))
                self._joined = True
            try:
                await self._work(client, local)
            except FederationFinished:
                logger.info("the run ended while this client was training")
            reason = self._reason(client)
            logger.info("leaving after %d updates: %s", self.updates, reason)
            await client.leave(reason, self.updates)

    async def _work(self, client: Client, local: LocalModel) -> None:
        await self._move_on(client, 0.0)
        while self._version is None and self._goes_on(client):
            await self._move_on(client, _FIRST_VERSION_SECONDS)
        if not self._shutdown.requested and (sent := await client.send_unsent()) is not None:
            self._count(sent)
        while self._version is not None and self._goes_on(client):
            if await client.while_paused():
                await self._move_on(client, 0.0)
                continue
            begun = monotonic()
            if not await self._update(client, local, self._version):
                return
            # Nobody folds at present, or slowly: another update on the same version is worth less each time.
            if await self._move_on(client, self._own.wait_seconds * 2**self._repeats):
                self._repeats = 0
            else:
                self._repeats = min(self._repeats + 1, _MOST_DOUBLINGS)
            if (early := client.pace_seconds - (monotonic() - begun)) > 0:
                logger.debug("%.1f s too early for the pace that the aggregator asks for", early)
                await client.rest(early)
                await self._move_on(client, 0.0)

    async def _update(self, client: Client, local: LocalModel, version: Version) -> bool:
        """Train and publish. False when a stop or the end of the run cut it short."""
        with update_span(client.client_id, version.head.number, client.came):
            with span("client.train"):
                trained = await self._train(client, local, version)
            if trained is None:
                return False
            with suppress(Rejected):  # too old by now, as the client has said
                self._count(await self._publish(client, trained, version))
        return True

    def _goes_on(self, client: Client) -> bool:
        return not (self._shutdown.requested or client.finished or self.updates == self._own.max_updates)

    def _reason(self, client: Client) -> str:
        if client.finished:
            return f"run ended: {client.finished.reason}"
        return "client.max_updates reached" if self.updates == self._own.max_updates else "stopped"

    async def _move_on(self, client: Client, seconds: float) -> bool:
        """Take the newest version. False when there is none newer than the one held, after `seconds`."""
        above = None if self._version is None else self._version.head.number
        fresh = await client.newest(above, seconds)
        self._version = fresh or self._version
        return fresh is not None

    async def _train(self, client: Client, local: LocalModel, version: Version) -> Trained | None:
        """One update's training at this client's speed; None when a stop or the end of the run cut it short."""
        own, shutdown = self._own, self._shutdown
        # Momentum gathered on an older version does not belong to this one.
        local.trainer.optimizer = self._task.optimizer(local.trainer.model)
        batches = [self._batches] * own.epochs
        trained = await self._offload.run(local.train, version.weights, batches, lambda: shutdown.requested)
        # A slower device computes the same, later.
        seconds = max(trained.seconds, own.min_train_seconds) / own.speed
        if trained.stopped or not await client.rest(max(seconds - trained.seconds, 0.0)):
            return None
        return replace(trained, seconds=seconds)

    async def _publish(self, client: Client, trained: Trained, version: Version) -> Published:
        return await client.publish(
            trained.delta,
            version.head.number,
            num_examples=trained.num_examples,
            metrics=trained.metrics,
            train_seconds=trained.seconds,
        )

    def _count(self, published: Published) -> None:
        self.updates += 1
        head = published.head
        logger.info(
            "update %d on version %d: loss %.4f, %d examples, %d bytes",
            head.sequence,
            head.base_version,
            head.metrics.get("loss", math.nan),
            head.num_examples,
            published.sent_bytes,
        )


def _local_model(task: Task, settings: Settings) -> LocalModel:
    model = task.model()
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), settings.task.share)
