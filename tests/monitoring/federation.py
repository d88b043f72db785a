"""A whole federation in this process, to be watched: every role, on any broker, until a stop is asked for."""

import asyncio
import contextlib
import socket
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.inference import run_inference
from llmos_stream.inference.deployment.deployer import run_deployer
from llmos_stream.log.events import follow_events
from llmos_stream.registry import open_store, run_archiver
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.telemetry.federation_metrics import FederationMetrics
from llmos_stream.training import load_task
from tests.inference.deployment.standins import StandInVllm, listening
from tests.roles.aids import settings_for

_PAUSE_SECONDS = 0.05


@cache
def federation_metrics() -> FederationMetrics:
    """The monitor's, of which there can be one in a process."""
    return FederationMetrics()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def whole_settings(federation: str, folder: Path, **sections: dict[str, Any]) -> Settings:
    """Three clients on a small task; every second version is archived."""
    given: dict[str, dict[str, Any]] = {
        "task": {"entry": "blobs", "shards": 3},
        "aggregation": {"buffer_size": 2, "deadline_seconds": 2.0},
        "staleness": {"kind": "polynomial", "maximum": 100},
        "codec": {"name": "int8"},
        "client": {"lr": 0.1, "wait_seconds": 1.0, "min_train_seconds": 0.2},
        "versions": {"full_every": 4},
        "registry": {"url": f"file://{folder}", "every": 2},
        "inference": {"port": free_port(), "max_delay_ms": 0.0},
    }
    for section, fields in sections.items():
        given[section] = given.get(section, {}) | fields
    return settings_for(federation, **given)


async def run_whole(broker: Broker, settings: Settings, shutdown: Shutdown, *, quick: int = 2) -> None:
    """Run every role until the stop; the last of the clients is ten times slower. Somebody asks for predictions.

    `quick` clients train at full speed beside it.
    """
    async with Offload(2) as offload:
        task = load_task(settings.task, settings.client)

        async def client(shard: int) -> None:
            speed = 1.0 if shard < quick else 0.1
            traits = {"shard": shard, "id": f"client-{shard}", "speed": speed}
            own = settings.model_copy(update={"client": settings.client.model_copy(update=traits)})
            with ClientState(f"client-{shard}", None) as state:
                await run_client(broker, own, load_task(own.task, own.client), state, offload, shutdown)

        await run_all(
            run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown),
            run_evaluator(broker, settings, task, offload, shutdown),
            run_archiver(broker, settings, open_store(settings.registry, settings.federation.name), offload, shutdown),
            run_inference(broker, settings, task, offload, shutdown),
            follow_events(broker, Topics(settings.federation.name), federation_metrics().observe, shutdown),
            _ask(settings.inference.port, shutdown),
            *(client(shard) for shard in range(quick + 1)),
        )


async def _ask(port: int, shutdown: Shutdown) -> None:
    """Ask for predictions all the while, some of them for what the model does not take."""
    asked = 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        while not await shutdown.wait(_PAUSE_SECONDS):
            asked += 1
            inputs = [[0.0] * (3 if asked % 20 == 0 else 16)] * (1 + asked % 4)
            try:
                await http.post("/v1/predict", json={"inputs": inputs})
            except httpx.TransportError:  # not there yet, or not any more
                await asyncio.sleep(0)


async def run_texts(broker: Broker, model: Path, shutdown: Shutdown) -> None:
    """Serve a language model of its own federation until the stop, and deploy it. Somebody asks for texts."""
    options = {"model": str(model), "sequence": 32}
    with listening(StandInVllm()) as server:
        settings = settings_for(
            "texts",
            task={"entry": "llm", "options": options},
            inference={"port": free_port()},
            deploy={"urls": server.url, "folder": str(model.parent / "adapters")},
        )
        await _serve_texts(broker, settings, shutdown)


async def _serve_texts(broker: Broker, settings: Settings, shutdown: Shutdown) -> None:
    await broker.create_topics(Topics(settings.federation.name).specs(settings.topics))
    async with Offload(2) as offload:
        task = load_task(settings.task, settings.client)
        await run_all(
            run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown),
            run_inference(broker, settings, task, offload, shutdown),
            run_deployer(broker, settings, offload, shutdown),
            _ask_for_texts(settings.inference.port, shutdown),
        )


async def _ask_for_texts(port: int, shutdown: Shutdown) -> None:
    asked = {"model": "texts", "prompt": "peace", "max_tokens": 4}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        while not await shutdown.wait(_PAUSE_SECONDS):
            with contextlib.suppress(httpx.HTTPError):  # it is not there yet, or no more
                await http.post("/v1/completions", json=asked)
