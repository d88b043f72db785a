"""A real federation in this process with the live page beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import time
from typing import Any

import httpx

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings, load
from llmos_stream.dashboard import LivePage
from llmos_stream.demo.scenario import ClientMix, make_scenario
from llmos_stream.errors import Reason
from llmos_stream.log.federation import Federation
from llmos_stream.log.stream import event_key
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.aggregator.finishing import finish_run
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.testing import until
from llmos_stream.training import load_task
from llmos_stream.types import Event, EventKind
from llmos_stream.wire import dump_event
from tests.dashboard.aids import SECONDS, TOKEN, heard_port
from tests.dashboard.test_page_state import HOSTILE

FEDERATION = "digits"


class Run:
    """A federation under way: where its page is, and its log."""

    def __init__(self, where: str, broker: Broker, http: httpx.AsyncClient) -> None:
        self.where = where
        self.broker = broker
        self._http = http

    async def state(self) -> Any:
        return (await self._http.get(f"{self.where}/api/state")).json()

    async def until_version(self, number: int) -> None:
        async def there() -> bool:
            return ((await self.state())["headline"]["version"] or 0) >= number

        await until(there)

    async def refuse(self, detail: str, offset: int) -> None:
        """Let the log say that an update of somebody hostile was refused."""
        data = {
            "client_id": HOSTILE,
            "reason": str(Reason.MALFORMED),
            "detail": detail,
            "partition": 0,
            "offset": offset,
        }
        await self.tell(Event(EventKind.UPDATE_REJECTED, "aggregator", int(time() * 1000), data))

    async def tell(self, event: Event) -> None:
        """Write an event to the log."""
        async with self.broker.producer() as producer:
            await producer.send(Topics(FEDERATION).events, dump_event(event), key=event_key(event))


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Run]:
    """Four clients, one slow, one leaving; an aggregator, an evaluator and the page."""
    settings = load(
        {
            "federation": {"name": FEDERATION},
            "dashboard": {"port": 0, "token": TOKEN},
            "client": {"min_train_seconds": 0.5, "wait_seconds": 0.2},
            "aggregation": {"buffer_size": 2},
            "runtime": {"stop_seconds": 10.0},
        }
    )
    over = Shutdown()
    async with MemoryBroker() as broker, Offload(2) as offload, httpx.AsyncClient(timeout=SECONDS) as http:
        with heard_port() as port:

            async def finish(log: Broker) -> object:
                return await finish_run(Federation(log, Topics(FEDERATION), settings.wire, offload, over), settings)

            page = LivePage(settings, finish)
            everything = asyncio.gather(
                _federation(broker, settings, offload, over),
                page.show(over),
                page.follow(broker, lambda _: None, over),
            )
            try:
                await until(lambda: port() is not None or everything.done())
                yield Run(f"http://127.0.0.1:{port()}", broker, http)
            finally:
                over.request()
                async with asyncio.timeout(SECONDS):
                    await everything


async def _nobody(broker: Broker) -> None:
    """Finish nothing."""


@contextlib.asynccontextmanager
async def waiting() -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The page before its broker answers: where it is, and what makes the broker answer."""
    settings, over, answered = load({"dashboard": {"port": 0}}), Shutdown(), asyncio.Event()
    page = LivePage(settings, _nobody)
    async with MemoryBroker() as broker:

        async def follow() -> None:
            await answered.wait()
            await page.follow(broker, lambda _: None, over)

        with heard_port() as port:
            everything = asyncio.gather(page.show(over), follow())
            try:
                await until(lambda: port() is not None or everything.done())
                yield f"http://127.0.0.1:{port()}", answered.set
            finally:
                over.request()
                answered.set()
                async with asyncio.timeout(SECONDS):
                    await everything


async def _federation(broker: Broker, settings: Settings, offload: Offload, over: Shutdown) -> None:
    task = await offload.run(load_task, settings.task, settings.client)
    scenario = make_scenario(settings, ClientMix(clients=4, slow=1, late=0, leaving=1))
    await run_all(
        run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, over),
        run_evaluator(broker, settings, task, offload, over),
        *(
            run_client(
                broker, own, load_task(own.task, own.client), ClientState(own.client.id or "", None), offload, over
            )
            for own in scenario.clients
        ),
    )
