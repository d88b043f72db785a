"""The archiver: follows the versions in the log and archives those that are to be kept (`registry.keep`).

What is archived is what it remembers: after a restart it goes on from the newest one. It reads the heads of all
versions, and the weights of those it archives alone, with what they stand on.
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from prometheus_client import Counter, Gauge

from llmos_stream.broker import Broker, Reader, TopicPartition, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, OffsetGone, Rejected
from llmos_stream.log import ControlView, Pointer, Promotion, Replica, version_index, wait_for_topics
from llmos_stream.log.scan import HeadStream, LoggedHead
from llmos_stream.log.standing import Standing
from llmos_stream.registry.entry import Damaged
from llmos_stream.registry.store import StoreUnavailable, VersionStore
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.types import VersionHead
from llmos_stream.wire import describe

logger = logging.getLogger(__name__)

STORE = "store"
"""What the archiver needs beside its broker, as `/ready` names it."""
ARCHIVED = Counter("llmos_archived_versions", "Versions archived by this process.")
ARCHIVED_BYTES = Counter("llmos_archived_bytes", "Bytes of the tensors that these versions take in the store.")
HELD = Gauge("llmos_registry_versions", "Versions in the registry.")
NEWEST = Gauge("llmos_registry_newest_version", "Number of the newest version in the registry.")
_POLL_SECONDS = 0.25
_FETCH_SECONDS = 60.0

T = TypeVar("T")


async def run_archiver(
    broker: Broker, settings: Settings, store: VersionStore, offload: Offload, shutdown: Shutdown
) -> list[int]:
    """Archive versions until the run ends. Returns those archived here, in that order.

    While the broker or the store does not answer it keeps trying, and loses no place. Raises ConfigError where the
    store holds another run of this federation.
    """
    archiving = _Archiving(broker, settings, store, offload, shutdown)
    await keep_trying(archiving.follow, shutdown, "looking for versions again")
    return archiving.archived


class _Archiving:
    """What the archiver keeps while it loses the broker and finds it again."""

    def __init__(
        self, broker: Broker, settings: Settings, store: VersionStore, offload: Offload, shutdown: Shutdown
    ) -> None:
        self._broker = broker
        self._rule = settings.registry
        self._wire = settings.wire
        self._federation = settings.federation.name
        self._topics = Topics(self._federation)
        self._store = store
        self._offload = offload
        self._shutdown = shutdown
        self._held: set[int] | None = None  # in the store; None until it has been asked
        self._passed: Pointer | None = None  # the newest version seen
        self._settled: Promotion | None = None  # whose version was dealt with
        self.archived: list[int] = []

    async def follow(self) -> None:
        """Raises BrokerUnavailable when the broker does not answer: call it again then."""
        if not await wait_for_topics(self._broker, self._topics, self._shutdown):
            return
        if self._held is None and not await self._look():
            return
        async with AsyncExitStack() as stack:
            topics, enter = self._topics, stack.enter_async_context
            control = ControlView(await enter(self._broker.reader([topics.control], start="earliest")))
            models = await enter(self._broker.reader([topics.models], start="earliest"))
            fetching = await enter(self._broker.reader([topics.models], start="latest", check_crcs=False))
            replica = Replica(fetching, topics.models, self._wire, self._offload)
            await until_stop(control.catch_up(), self._shutdown)
            await self._follow(control, models, replica)

    async def _look(self) -> bool:
        """See what is archived, and where to go on. False when a stop comes first."""
        held = await self._reach(self._store.numbers)
        if held is None:
            return False
        self._held = set(held)
        self._show()
        for number in reversed(held):
            try:
                entry = await self._reach(partial(self._store.entry, number))
            except Damaged as error:
                logger.error("%s", error)
                continue
            if entry is None:
                return False
            self._passed = entry.at
            break
        return True

    async def _follow(self, control: ControlView, models: Reader, replica: Replica) -> None:
        standing = Standing()

        def overtaken(error: OffsetGone, _: object) -> None:
            nonlocal standing
            standing = Standing()  # what the next ones stand on may be gone
            logger.warning("retention deleted versions before they were seen (%s); going on with the oldest", error)

        following = HeadStream(models, VersionHead, on_gap=overtaken)
        if self._passed is not None:
            beginning = self._passed.beginning
            if (at := TopicPartition(self._topics.models, beginning.partition)) in models.partitions:
                models.seek(at, beginning.offset)
        while not self._shutdown.requested:
            # The end is written after the last version: once it is known, what there is to read is all there will be.
            await control.poll(0)
            ended = control.finished is not None and await until_stop(models.lag(), self._shutdown) == 0
            if control.promoted is not None and control.promoted != self._settled:
                await self._settle(control.promoted, replica)
            if ended:
                if self._passed is not None and self._rule.keep != "promoted":
                    await self._archive(self._passed, replica, control.promoted)
                return
            found = await following.heads(_POLL_SECONDS)
            await self._pass_all(found, standing, replica, control.promoted)

    async def _pass_all(
        self, found: list[LoggedHead[VersionHead]], standing: Standing, replica: Replica, promotion: Promotion | None
    ) -> None:
        for logged in found:
            if self._shutdown.requested:
                return
            at = standing.pointer(logged.head, logged.partition, logged.offset)
            await self._pass(logged, at, replica, promotion)

    async def _pass(
        self, logged: LoggedHead[VersionHead], at: Pointer | None, replica: Replica, promotion: Promotion | None
    ) -> None:
        number = logged.head.number
        await self._check(logged.head)
        if at is None or (self._passed is not None and number <= self._passed.version):
            return  # what the next ones stand on, or what is left of a chain
        every = self._rule.keep == "every" and number % self._rule.every == 0
        if every or (promotion is not None and promotion.version == number):
            await self._archive(at, replica, promotion)
        self._passed = at

    async def _check(self, head: VersionHead) -> None:
        """Raise ConfigError when the store has this version of another run."""
        if head.number not in self._numbers:
            return
        try:
            entry = await self._reach(partial(self._store.entry, head.number))
        except Damaged as error:
            logger.error("%s", error)
            return
        if entry is not None and not entry.is_of(describe(head)):
            raise ConfigError(
                f"registry.url: it holds version {head.number} of another run of federation {self._federation}; "
                "give this run a folder or a name of its own"
            )

    async def _settle(self, promotion: Promotion, replica: Replica) -> None:
        """Archive a promoted version that was passed; one that is still to come is archived when it does."""
        number = promotion.version
        if number not in self._numbers:
            if self._passed is None or number > self._passed.version:
                return
            at = await until_stop(self._find(number), self._shutdown)
            if at is None:
                logger.error("version %d is promoted and cannot be archived: it is no longer in the log", number)
            else:
                await self._archive(at, replica, promotion)
        self._settled = promotion

    async def _find(self, number: int) -> Pointer | None:
        async with version_index(self._broker, self._topics.models) as index:
            return await index.pointer(number)

    async def _archive(self, at: Pointer, replica: Replica, promotion: Promotion | None) -> None:
        if at.version in self._numbers:
            return
        try:
            version = await until_stop(replica.move_to(at, _FETCH_SECONDS), self._shutdown)
        except OffsetGone:
            logger.warning("version %d is not archived: retention has just deleted it", at.version)
            return
        except Rejected as error:
            logger.error("version %d is not archived: it cannot be read: %s", at.version, error)
            return
        entry = await self._reach(partial(self._store.save, version, at))
        if entry is None:
            return
        self._numbers.add(at.version)
        self.archived.append(at.version)
        ARCHIVED.inc()
        ARCHIVED_BYTES.inc(entry.size)
        self._show()
        logger.info("version %d is archived (%d bytes)", at.version, entry.size)
        await self._thin(promotion)

    async def _thin(self, promotion: Promotion | None) -> None:
        """Delete the oldest versions past `registry.most`, none that is promoted or that a rollback would go to."""
        if self._rule.most is None:
            return
        safe = set() if promotion is None else {promotion.version, *promotion.history[-1:]}
        for number in sorted(self._numbers - safe)[: -self._rule.most]:
            await self._reach(partial(self._store.delete, number))
            if self._shutdown.requested:
                return  # whether it was deleted is not known; a restart looks
            self._numbers.discard(number)
            self._show()
            logger.info("version %d is deleted from the registry: registry.most is %d", number, self._rule.most)

    def _show(self) -> None:
        HELD.set(len(self._numbers))
        NEWEST.set(max(self._numbers, default=0))

    @property
    def _numbers(self) -> set[int]:
        assert self._held is not None, "looked before anything is followed"  # noqa: S101
        return self._held

    async def _reach(self, work: Callable[[], T]) -> T | None:
        """Do `work` on the store, again and again while it does not answer; None when a stop comes first."""

        async def attempt() -> T:
            return await self._offload.run(work)

        return await keep_trying(attempt, self._shutdown, "trying again", trouble=StoreUnavailable, need=STORE)
