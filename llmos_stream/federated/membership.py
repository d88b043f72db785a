"""A client's membership in a federation, for synchronous callers: an event loop in the background.

Where no broker is set the federation is embedded: an in-process broker and an aggregator run in the
same background loop.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack

from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker, Topics, connect
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError, BrokerUnavailable, Closed, LlmosError
from llmos_stream.log.record_tracing import update_span
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.log.versions import Version
from llmos_stream.roles.aggregator import Initial, run_aggregator
from llmos_stream.roles.client.loop import client_id_of, state_folder
from llmos_stream.roles.client.session import Client, Published
from llmos_stream.roles.client.state import ClientState
from llmos_stream.roles.shared_model import Trained
from llmos_stream.runtime import Background, Offload, Shutdown, run_while
from llmos_stream.runtime.retry import keep_trying
from llmos_stream.telemetry.tracing import Span

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 60.0
_DRAIN_SECONDS = 30.0
_VERSIONS_KEPT = 4


class Membership:
    """Joins at construction; `newest` and `publish` block; `close` leaves. Not for two threads at once."""

    def __init__(self, settings: Settings, layout: Layout, weights: Tensor) -> None:
        self._settings = _alone(settings) if settings.broker.bootstrap_servers is None else _guest(settings)
        self._layout = layout
        self._weights = weights
        self._current: Version | None = None
        self._published = False
        self._aggregating = False
        self._aggregator_ended = asyncio.Event()
        self._failure: Exception | None = None
        self._background = Background("llmos-federation")
        self._stack = AsyncExitStack()
        self._updates = 0
        self._client: Client | None = None
        self._entered = AsyncExitStack()  # holds the client, which is opened anew after broker trouble
        self._in_trouble = False
        self._make_client: Callable[[], Client]
        self._shutdown = Shutdown()
        try:
            self._background.run(self._open())
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> str | None:
        end = self._joined.finished
        return None if end is None else f"{end.reason}: {end.detail}"

    @property
    def _joined(self) -> Client:
        if self._client is None or self._background.closed:
            raise Closed("this FederatedLearning object has been closed; make a new one to go on")
        return self._client

    def newest(self) -> Version:
        """The newest version. After an update of this client on the one it holds, waits a while for a newer one.

        Raises BrokerUnavailable when the federation has no version at all. When the broker is gone, this and
        `publish` wait until it is there again.
        """
        _ = self._joined
        return self._background.run(self._newest())

    def update_span(self, base: Version) -> AbstractContextManager[Span]:
        """See `trail.update_span`."""
        return update_span(self._joined.client_id, base.head.number, self._joined.came)

    def publish(self, trained: Trained, base: Version) -> Published:
        """Raises Rejected when `base` is too old by now: go on from the newest."""
        published = self._background.run(
            self._joined.publish(
                trained.delta,
                base.head.number,
                num_examples=trained.num_examples,
                metrics=trained.metrics,
                train_seconds=trained.seconds,
            )
        )
        self._published = True
        self._updates += 1
        return published

    def close(self) -> None:
        if self._background.closed:
            return
        try:
            self._background.close(self._close(), _DRAIN_SECONDS)
        except (LlmosError, TimeoutError) as error:
            logger.warning("the federation was left without a farewell: %s", error or type(error).__name__)

    async def _open(self) -> None:
        settings = self._settings
        async with AsyncExitStack() as stack:
            offload = await stack.enter_async_context(Offload(settings.runtime.workers))
            embedded = settings.broker.bootstrap_servers is None
            broker = _own_broker(self._layout, settings.versions.full_every) if embedded else connect(settings.broker)
            await stack.enter_async_context(broker)
            if embedded:
                initial = Initial(self._layout, self._weights)
                self._aggregating = True
                self._background.start(self._aggregate(broker, initial, offload))
            await run_while(self._wait_for_topics(broker), self._aggregator_fails())
            client_id = client_id_of(settings)
            folder = None if embedded and settings.client.state_dir is None else state_folder(settings, client_id)
            state = stack.enter_context(ClientState(client_id, folder))
            self._make_client = lambda: Client(
                broker, settings, client_id, self._layout, state, offload, self._shutdown
            )
            await stack.enter_async_context(self._entered)
            client = await self._entered.enter_async_context(self._make_client())
            await self._join(client)
            self._client = client
            self._stack = stack.pop_all()

    async def _join(self, client: Client) -> None:
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                await client.join(None)
        except TimeoutError:
            raise BrokerUnavailable(
                f"federation {self._settings.federation.name} could not be joined within {_JOIN_SECONDS:g} s"
            ) from None

    async def _wait_for_topics(self, broker: Broker) -> None:
        name = self._settings.federation.name
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                await wait_for_topics(broker, Topics(name), self._shutdown)
        except TimeoutError:
            raise BrokerUnavailable(
                f"federation {name} has no topics after {_JOIN_SECONDS:g} s; start its aggregator "
                "(`llmos-stream aggregator`) or set LLMOS_FEDERATION__NAME to one that runs"
            ) from None

    async def _aggregate(self, broker: Broker, initial: Initial, offload: Offload) -> None:
        """The embedded aggregator; what it fails with is for the caller of the next method."""
        try:
            await run_aggregator(broker, self._settings, lambda: initial, offload, self._shutdown)
        except Exception as error:  # noqa: BLE001  nobody awaits this: the caller is told by the next method
            self._failure = error
        finally:
            self._aggregator_ended.set()

    async def _aggregator_fails(self) -> None:
        """Raises what the embedded aggregator failed with, as soon as it has."""
        await self._aggregator_ended.wait()
        if self._failure is not None:
            raise self._failure

    async def _newest(self) -> Version:
        held = self._current
        above = None if held is None else held.head.number
        seconds = _JOIN_SECONDS if held is None else self._settings.client.wait_seconds if self._published else 0.0

        async def look() -> Version | None:
            client = await self._working_client()
            try:
                await run_while(client.while_paused(), self._aggregator_fails())
                fresh = await run_while(client.newest(above, seconds), self._aggregator_fails())
            except BrokerError:
                self._in_trouble = True
                raise
            if self._current is None and fresh is not None:
                await client.send_unsent()  # of an earlier process; the version has told what still counts
            return fresh

        fresh = await keep_trying(look, self._shutdown, "asking again")
        if fresh is not None:
            self._current, self._published = fresh, False
        if self._current is None:
            raise BrokerUnavailable(f"federation {self._settings.federation.name} published no version; is it running?")
        return self._current

    async def _working_client(self) -> Client:
        """The client, opened anew if its readers have broken off. Updates and their sequences are in its state."""
        if self._in_trouble:
            await self._entered.aclose()
            self._client = await self._entered.enter_async_context(self._make_client())
            self._in_trouble = False
        return self._joined

    async def _close(self) -> None:
        self._shutdown.request()
        try:
            if self._client is not None:
                await self._client.leave("closed", self._updates)
            if self._aggregating:
                await self._aggregator_ended.wait()
        finally:
            await self._stack.aclose()


def _own_broker(layout: Layout, full_every: int) -> Broker:
    """A log in this process with room for the versions that a reader may be busy with, and what they stand on."""
    kept = max(_VERSIONS_KEPT, 3 + full_every // 3)
    return MemoryBroker(partition_bytes=max(1 << 26, kept * 4 * layout.numel))


def _alone(settings: Settings) -> Settings:
    """Alone, every update is a version, and every version full, unless something else was asked for."""
    aggregation, versions = settings.aggregation, settings.versions
    if "buffer_size" not in aggregation.model_fields_set:
        aggregation = aggregation.model_copy(update={"buffer_size": 1})
    if "full_every" not in versions.model_fields_set:  # there is no network to spare
        versions = versions.model_copy(update={"full_every": 1})
    return settings.model_copy(update={"aggregation": aggregation, "versions": versions})


def _guest(settings: Settings) -> Settings:
    """The process is its owner's, and so is how its memory is managed, unless that was asked for."""
    if "heap_bytes" in settings.broker.model_fields_set:
        return settings
    return settings.model_copy(update={"broker": settings.broker.model_copy(update={"heap_bytes": 0})})
