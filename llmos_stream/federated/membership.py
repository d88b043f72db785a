"""A client's membership in a federation, for synchronous callers: an event loop in the background.

Where no broker is set the federation is embedded: an in-process broker and an aggregator run in the
same background loop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker, Topics, connect
from llmos_stream.codec import Layout
from llmos_stream.config import ClientSettings, Settings
from llmos_stream.errors import BrokerError, BrokerUnavailable, Closed, FederationFinished, LlmosError, Rejected
from llmos_stream.federated.beside import Beside
from llmos_stream.log.federation import Federation
from llmos_stream.log.record_tracing import update_span
from llmos_stream.log.versions import Version
from llmos_stream.registry.warm_start import warm_start_of
from llmos_stream.roles.aggregator import Initial, run_aggregator
from llmos_stream.roles.client import Client, ClientState, Published, client_id_of, state_folder
from llmos_stream.roles.client.participation import Participation
from llmos_stream.runtime import SYSTEM_CLOCK, Background, Clock, Offload, Shutdown, run_while
from llmos_stream.storage.spool import Spools
from llmos_stream.telemetry.tracing import Span
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.training.shared_model import Trained
from llmos_stream.wire import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_SECONDS = 60.0
_DRAIN_SECONDS = 30.0
_SAY_SECONDS = 3.0
_VERSIONS_KEPT = 4


class Membership:
    """Joins at construction; `close` leaves. Both block. Not for two threads at once.

    `newest`, `next_version` and `publish` give coroutines, which `run` runs to the end and `awaited` makes awaitable in
    the caller's own event loop. While the broker is gone they wait until it is there again.

    It follows the policy of every client (`core.client_policy`), but for what the caller's own loop decides: how many
    updates there are, and how often it trains on one version.
    """

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        initial: Callable[[], Initial],
        owner: str,
        clock: Clock = SYSTEM_CLOCK,
        beside: Beside | None = None,
    ) -> None:
        """`initial` gives version 0, where the federation is embedded: its weights are not held here.

        `owner` is the class that users know. `beside` is what is done beside the updates.
        """
        self._beside = beside
        self.clock = clock
        self._owner = owner
        if settings.broker.bootstrap_servers is None:
            # Every version is full. Nor is there a pace to keep: the one client waits for what comes of its update, and
            # there is no network to spare.
            self._settings = _unless_given(settings, versions={"full_every": 1}, aggregator={"utilisation": 1.0})
        else:
            # The process is its owner's, and so is how its memory is managed.
            self._settings = _unless_given(settings, broker={"heap_bytes": 0})
        self._initial = initial
        self._layout = layout
        rules = ClientSettings(wait_seconds=settings.client.wait_seconds)
        self._participation = Participation(rules, clock, most_doublings=0)
        self._aggregating = False
        self._aggregator_ended = asyncio.Event()
        self._failure: Exception | None = None
        self._background = Background("llmos-federation")
        self._stack = AsyncExitStack()
        self._federation: Federation
        self._client: Client | None = None
        self._entered = AsyncExitStack()  # holds the client, which is opened anew after broker trouble
        self._in_trouble = False
        self._make_client: Callable[[], Client]
        self._process = os.getpid()
        self._shutdown = Shutdown()
        try:
            self._background.run(self._open())
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> str | None:
        """Why the run has ended, as far as this client has heard."""
        end = self._joined.finished
        return None if end is None else f"{end.reason}: {end.detail}"

    @property
    def _joined(self) -> Client:
        if self._process != os.getpid():
            raise Closed(f"this {self._owner} object is of the process before a fork; make a new one in this process")
        if self._client is None or self._background.closed:
            raise Closed(f"this {self._owner} object has been closed; make a new one to go on")
        return self._client

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        """Run one of this object's coroutines to its end. An interrupt cancels it."""
        return self._background.run(asked)

    def awaited(self, asked: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Start one of this object's coroutines. See `Background.awaited`."""
        return self._background.awaited(asked)

    def newest(self) -> Coroutine[Any, Any, Version]:
        """The newest version. After an update of this client on the one it holds, waits a while for a newer one.

        Raises:
            BrokerUnavailable: the federation has no version at all.
        """
        _ = self._joined
        return self._known(self._newest)

    def next_version(self) -> Coroutine[Any, Any, Version]:
        """The version to train on next, as soon as the policy allows it; the newest once the run has ended.

        Raises as `newest` does, and NotWanted where the operator does not want this client.
        """
        _ = self._joined
        return self._known(self._next_measured)

    def start_from(self, version: Version) -> Coroutine[Any, Any, Tensor]:
        """The weights to train from, where this is the newest version. See `Client.start_from`."""
        return self._joined.start_from(version)

    def update_span(self, base: Version) -> AbstractContextManager[Span]:
        """See `record_tracing.update_span`."""
        return update_span(self._joined.client_id, base.head.number, self._joined.version_span)

    def publish(self, trained: Trained) -> Coroutine[Any, Any, Published]:
        """Send an update as soon as the pace allows it.

        Raises:
            Rejected: its base version is too old by now: go on from the newest.
            FederationFinished: the run has ended.
        """
        _ = self._joined
        return self._publish(trained)

    def train_alone(self, version: Version) -> Coroutine[Any, Any, None]:
        """Train the model of this site alone, where there is one, as the update on `version` was trained."""
        return self._train_alone(self._joined, version)

    def tell(self, evaluation: Evaluation) -> Coroutine[Any, Any, None]:
        """Tell the federation what a version reached on this client's own validation data."""
        return self._joined.events.measured(evaluation)

    @property
    def fastest(self) -> float:
        """The speed of the fastest client, as far as this one has heard. See `training.local_steps`."""
        return self._joined.heard().steps_per_second

    def outcomes(self) -> dict[str, int | str]:
        """What became of this client's updates, as far as it has heard."""
        return self._joined.outcomes.summary()

    def close(self) -> None:
        """Leave the federation. May be called more than once."""
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
            # What is large lies in a temporary file: nobody needs it at once, and it would be several times the model.
            store = Spools(settings.wire.memory_bytes, settings.wire.spool_dir).new
            broker = _own_broker(self._layout, settings, store) if embedded else connect(settings.broker)
            await stack.enter_async_context(broker)
            topics = Topics(settings.federation.name)
            self._federation = Federation(broker, topics, settings.wire, offload, self._shutdown, self.clock)
            if embedded:
                self._aggregating = True
                self._background.start(self._aggregate(broker, offload))
            await run_while(self._wait_for_topics(), self._aggregator_fails())
            client_id = client_id_of(settings.client)
            state = stack.enter_context(ClientState(client_id, kept_in(settings), store))
            self._make_client = lambda: Client(
                self._federation, client_id, self._layout, settings.codec, state, settings.client
            )
            if self._beside is not None:
                self._beside.begin(self._federation)
            await stack.enter_async_context(self._entered)
            client = await self._enter()
            await self._join(client)
            self._client = client
            self._stack = stack.pop_all()

    async def _enter(self) -> Client:
        client = await self._entered.enter_async_context(self._make_client())
        if self._beside is not None:
            await self._entered.enter_async_context(self._beside.connected())
        return client

    async def _join(self, client: Client) -> None:
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                await client.joined(None)
        except TimeoutError:
            raise BrokerUnavailable(
                f"federation {self._federation.name} could not be joined within {_JOIN_SECONDS:g} s"
            ) from None
        self._participation.resume()

    async def _wait_for_topics(self) -> None:
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                await self._federation.wait_for_topics(*Client.needs(self._federation.topics))
        except TimeoutError:
            raise BrokerUnavailable(
                f"federation {self._federation.name} has no topics after {_JOIN_SECONDS:g} s, or none that this user "
                "may see (Describe); start its aggregator (`llmos-stream aggregator`) or set LLMOS_FEDERATION__NAME to "
                "one that runs"
            ) from None

    async def _aggregate(self, broker: Broker, offload: Offload) -> None:
        """The embedded aggregator; what it fails with is for the caller of the next method."""
        try:
            warm = warm_start_of(self._settings)
            await run_aggregator(broker, self._settings, self._initial, offload, self._shutdown, warm_start=warm)
        except Exception as error:  # noqa: BLE001  nobody awaits this: the caller is told by the next method
            self._failure = error
        finally:
            self._aggregator_ended.set()

    async def _aggregator_fails(self) -> None:
        """Raises what the embedded aggregator failed with, as soon as it has."""
        await self._aggregator_ended.wait()
        if self._failure is not None:
            raise self._failure

    async def _newest(self, client: Client) -> Version | None:
        participation = self._participation
        if participation.version is not None:
            return await participation.newest(client, participation.seconds_to_newer(client))
        return await run_while(participation.newest(client, _JOIN_SECONDS), self._say_waiting())

    async def _say_waiting(self) -> None:
        await self.clock.sleep(_SAY_SECONDS)
        logger.warning(
            "waiting for the first version of federation %s: is its aggregator running?", self._federation.name
        )

    async def _next_version(self, client: Client) -> Version | None:
        if self._participation.version is None and await self._newest(client) is None:
            return None
        if (version := await self._participation.next_version(client)) is not None:
            return version
        if client.finished is None:
            client.require_wanted()
        return await self._newest(client)

    async def _next_measured(self, client: Client) -> Version | None:
        version = await self._next_version(client)
        if version is not None and self._beside is not None:
            await self._beside.received(client, version, is_last=client.finished is not None)
        return version

    async def _train_alone(self, client: Client, version: Version) -> None:
        if self._beside is not None:
            await self._beside.train_alone(client, version)

    async def _known(self, ask: Callable[[Client], Coroutine[Any, Any, Version | None]]) -> Version:
        if (version := await self._asked(ask)) is None:
            raise BrokerUnavailable(f"federation {self._federation.name} published no version; is it running?")
        return version

    async def _publish(self, trained: Trained) -> Published:
        published = await self._asked(lambda client: self._publish_by(client, trained))
        if published is None:
            self._joined.require_wanted()
            raise Closed(f"this {self._owner} object was closed before the update was sent")
        return published

    async def _publish_by(self, client: Client, trained: Trained) -> Published | None:
        beside, version = self._beside, self._participation.version
        if beside is None or version is None:
            return await self._participation.publish(client, trained)
        await beside.trained(client, version, trained)
        try:
            published = await self._participation.publish(client, trained)
        except (Rejected, FederationFinished):
            await beside.sent()
            raise
        await beside.sent()
        return published

    async def _asked(self, ask: Callable[[Client], Coroutine[Any, Any, T | None]]) -> T | None:
        """What `ask` returns, which is called again after broker trouble; None when a stop came first."""

        async def attempt() -> T | None:
            client = await self._working_client()
            try:
                return await run_while(ask(client), self._aggregator_fails())
            except BrokerError:
                self._in_trouble = True
                raise

        return await self._federation.keep_trying(attempt, "asking again")

    async def _working_client(self) -> Client:
        """The client, opened anew if its readers have broken off. Updates and their sequences are in its state."""
        if self._in_trouble:
            await self._entered.aclose()
            self._client = await self._enter()
            self._participation.resume()
            self._in_trouble = False
        return self._joined

    async def _close(self) -> None:
        self._shutdown.request()
        try:
            if self._client is not None:
                await self._client.events.left("closed", self._participation.updates)
            if self._aggregating:
                await self._aggregator_ended.wait()
        finally:
            await self._stack.aclose()


def kept_in(settings: Settings) -> Path | None:
    """The folder of the client's state; None where that need not outlive the process, as an embedded federation."""
    client = settings.client
    if settings.broker.bootstrap_servers is None and client.state_dir is None:
        return None
    return state_folder(client, settings.federation.name, client_id_of(client))


def _own_broker(layout: Layout, settings: Settings, store: Callable[[], Store]) -> Broker:
    """A log in this process with room for the versions that a reader may be busy with, and what they stand on."""
    kept = max(_VERSIONS_KEPT, 3 + settings.versions.full_every // 3)
    return MemoryBroker(partition_bytes=max(1 << 26, kept * 4 * layout.numel), store=store)


def _unless_given(settings: Settings, **sections: Mapping[str, object]) -> Settings:
    """The settings, with these in place of those that nobody has asked for."""
    for section, fields in sections.items():
        given = getattr(settings, section).model_fields_set
        settings = settings.changed(**{section: {name: fields[name] for name in fields.keys() - given}})
    return settings
