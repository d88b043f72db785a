"""Standing by, leading, leaving: what an aggregator and its shadows do alike, whatever they aggregate."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from llmos_stream.broker import Producer
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError, ConfigError, FederationFinished, Fenced, TransactionAborted
from llmos_stream.log.control import EVERYBODY, ControlView, Pointer, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.topics import check_chunks_fit, watch_topics
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator.leadership import Leadership, Load, leading
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.roles.aggregator.recovery import fetch_version, find_newest, recover
from llmos_stream.roles.aggregator.stopping import is_another
from llmos_stream.runtime import BROKER, met, run_while

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 8.0


class Aggregation(ABC):
    """One process's part in a federation that it may come to lead, through all its attempts."""

    def __init__(self, federation: Federation, settings: Settings, *, resume: bool = False) -> None:
        """`resume`: go on with a run that has ended, under the same stop settings as well."""
        self._federation = federation
        self._settings = settings
        self._resume_anyway = resume
        self._goes_on_after: RunEnd | None = None  # the end that is not this process's, until the run goes on
        self._leadership = Leadership(federation, settings.aggregator)
        self._first = True
        self._folding: Folding | None = None

    async def run(self) -> RunEnd | None:
        """Until the run has ended (returned) or a stop is asked for (None), through broker trouble.

        Raises FederationFinished when the run had ended before and does not go on, Fenced when another process has
        taken over.
        """

        async def attempt() -> RunEnd | None:
            return await self._federation.until_stop(self._attempt(), _DRAIN_SECONDS)

        return await self._federation.keep_trying(attempt, "starting again from the log")

    @abstractmethod
    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        """Before standing by: refuse, by an error, what must not lead here. False when a stop was asked for."""

    @abstractmethod
    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        """Aggregate, after this process's claim: what older ones wrote is settled, and `control` knows it.

        From the claim on standbys hear this process, however long it takes to open what it reads.
        """

    async def _create_topics(self) -> None:
        """Make what is missing. An admin who has made the topics need not have made the one that only sites use."""
        broker, topics = self._federation.broker, self._federation.topics
        specs = topics.specs(self._settings.topics)
        made = await broker.create_topics([spec for spec in specs if spec.name in topics.needed])
        try:
            made += await broker.create_topics([spec for spec in specs if spec.name not in topics.needed])
        except BrokerError as error:
            if error.retriable:
                raise
            logger.info("sites that share their models (client.share_local) cannot: %s", error)
        if made and len(made) < len(specs):
            logger.warning("made the topics that were missing, empty: %s", ", ".join(made))

    async def _attempt(self) -> RunEnd | None:
        federation = self._federation
        await self._create_topics()
        await self._check_kafka()
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(federation.control(sequences_of=EVERYBODY))
            met(BROKER)
            if control.finished and self._first:
                self._require_more(control.finished)
                self._goes_on_after = control.finished
            self._first = False
            # The one of this view, so that it is told from a later one.
            before = control.finished if control.finished == self._goes_on_after else None
            if not await self._prepare(stack, control):
                return None
            if not await self._leadership.await_turn(control, before):
                return control.finished
            try:
                # The producer comes first: from here on an older one is fenced and its transaction settled.
                producer: Producer = federation.broker.producer(group_of(federation.topics))
                await stack.enter_async_context(producer)
                await self._leadership.claim(producer, control)
                stack.enter_context(leading())
                # The run may have ended in the last transaction of the one that led before.
                publisher = Publisher(federation, producer, self._settings.aggregator)
                self._folding = None
                end = control.finished
                if end is None or end is before:
                    end = await run_while(
                        self._lead(stack, publisher, control),
                        self._leadership.beat(control, self._load),
                        watch_topics(federation.broker, federation.topics.needed, federation.clock),
                    )
            except FederationFinished:
                await self._leave()
                raise
            except Fenced as error:
                settled = self._leadership.is_settled
                if await self._leadership.superseded():
                    if settled:
                        raise
                    raise TransactionAborted("another standby took over at the same moment") from error
                raise TransactionAborted(
                    "the broker gave up a transaction that took too long; if this comes again, raise "
                    "LLMOS_BROKER__TRANSACTION_TIMEOUT_SECONDS"
                ) from error
        await self._leave()
        if end is not None:
            logger.info("the run has ended: %s", end.detail)
        return end

    async def _check_kafka(self) -> None:
        """Raise ConfigError for what would otherwise be found out once this process leads, or at its first version."""
        broker, topics = self._federation.broker, self._federation.topics
        await check_chunks_fit(broker, self._federation.wire, [topics.models, topics.snapshots])
        longest, ours = await broker.longest_transaction_seconds(), self._settings.broker.transaction_timeout_seconds
        if longest is not None and ours > longest:
            raise ConfigError(
                f"broker.transaction_timeout_seconds: {ours:g} is more than the {longest:g} s that Kafka allows "
                "(transaction.max.timeout.ms of its brokers); lower it"
            )

    async def _leave(self) -> None:
        try:
            await self._federation.until_stop(self._leadership.leave())
        except BrokerError as error:
            logger.warning("left without a word: %s", error)

    def _require_more(self, end: RunEnd) -> None:
        """Raise FederationFinished unless a run that has ended is to go on."""
        if not (self._resume_anyway or is_another(self._settings.stop, end)):
            raise FederationFinished(
                f"federation {self._federation.name} ended at version {end.version} ({end.reason}); go on with it "
                "under another limit (as --stop.max-versions) or with --resume, or start a new one under another name"
            )

    async def _fold(
        self, folding: Folding, control: ControlView, begin: Callable[[Folding], Awaitable[None]]
    ) -> RunEnd | None:
        """Go on from what the log holds, or `begin` where there is nothing, then fold."""
        self._folding = folding

        async def keep_place() -> None:
            await self._leadership.keep_place(folding.publisher.producer, control)
            await folding.announce_again(control)

        if (found := await find_newest(self._federation, control)) is None:
            await begin(folding)
        else:
            await self._resume(folding, control, found.pointer)
        if (before := control.finished) is not None:
            await folding.go_on(before)
            control.went_on()
            self._goes_on_after = None
        return await folding.run(lambda: control.paused, keep_place, lambda: control.asked_to_finish)

    def _load(self) -> Load | None:
        return Load() if self._folding is None else self._folding.load()

    async def _resume(self, folding: Folding, control: ControlView, pointer: Pointer) -> None:
        logger.info("going on from version %d", pointer.version)
        newest = await fetch_version(self._federation, pointer)
        await folding.resume(await recover(self._federation, local_rule(self._settings), control, pointer, newest))
