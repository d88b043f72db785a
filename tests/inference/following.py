"""A federation that is served: a real aggregator, and the service without its port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.inference.api import make_app
from llmos_stream.inference.batching import Batcher
from llmos_stream.inference.follow import PoolUpdater
from llmos_stream.inference.inputs import input_spec
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import ModelPool, making
from llmos_stream.inference.promoted import Promoted
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.runtime import BROKER, MODEL, Health, Offload, Shutdown
from llmos_stream.testing import RunningFederation
from llmos_stream.training import Task, load_task
from llmos_stream.wire.control import PROMOTED, Promotion, dump_setting
from tests.federation import federation_of
from tests.roles.aids import settings_for


class Serving:
    """The service without its port."""

    def __init__(
        self, pool: ModelPool, http: httpx.AsyncClient, health: Health, following: "asyncio.Task[None]"
    ) -> None:
        self.pool = pool
        self.http = http
        self.health = health
        self.following = following


@contextlib.asynccontextmanager
async def serving_of(broker: Broker, settings: Settings, task: Task) -> AsyncIterator[Serving]:
    shutdown, metrics = Shutdown(), InferenceMetrics(CollectorRegistry())
    health = Health((BROKER, MODEL))
    health.attach()
    async with Offload(2) as offload:
        pool = ModelPool(settings.inference)
        batcher = Batcher(settings.inference, offload)
        app = make_app(settings.inference, input_spec(task), pool, batcher, metrics, offload)
        federation = federation_of(broker, settings, offload, shutdown)
        promoted = Promoted(federation, settings.registry, making(task, settings.task.share), offload)
        follower = PoolUpdater(federation, making(task, settings.task.share), pool, promoted)
        following = asyncio.create_task(follower.run())
        answering = asyncio.create_task(batcher.run())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            try:
                yield Serving(pool, http, health, following)
            finally:
                shutdown.request()
                answering.cancel()
                await asyncio.wait([following, answering])
    if not following.cancelled():
        following.result()


def settings_of(federation: str, **sections: Any) -> Settings:
    return settings_for(federation, **{"task": {"entry": "blobs"}, "versions": {"full_every": 4}, **sections})


def task_of(settings: Settings) -> tuple[Task, Initial]:
    task = load_task(settings.task, settings.client)
    return task, initial_of(task, settings)


async def promote_in_log(running: RunningFederation, version: int, before: Sequence[int] = ()) -> None:
    async with running.broker.producer() as producer:
        await producer.send(running.topics.control, dump_setting(Promotion(version, tuple(before), 0)), key=PROMOTED)
