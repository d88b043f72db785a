"""The archiver: follows the versions in the log and archives those that `registry.keep` names.

The store is its only memory: after a restart it goes on from the newest archived version. It reads the heads of all
versions, and the weights only of those that it archives and of the chain below them.
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from prometheus_client import Counter, Gauge

from llmos_stream.broker import Broker, Reader, TopicPartition, Topics
from llmos_stream.config import RegistrySettings, Settings
from llmos_stream.errors import BrokerUnavailable, ConfigError, OffsetGone, Rejected
from llmos_stream.log import ControlView, Pointer, Promotion
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.log.replica import Replica
from llmos_stream.log.scan import HeadStream
from llmos_stream.log.standing import Standing
from llmos_stream.registry.entry import ArchivedVersion, Damaged
from llmos_stream.registry.store import StoreUnavailable, VersionStore
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import keep_trying
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
    """Archive versions until the run ends, through trouble with the broker or the store.

    Returns:
        The versions that this process archived, in order.

    Raises:
        ConfigError: The store holds another run of this federation.
    """
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown)
    archiver = _Archiver(federation, settings.registry, store)
    await federation.keep_trying(archiver.follow, "looking for versions again")
    return archiver.archived


class _Archiver:
    """What stays while the broker is lost and found again."""

    def __init__(self, federation: Federation, rule: RegistrySettings, store: VersionStore) -> None:
        self._federation = federation
        self._rule = rule
        self._store = store
        self._numbers: set[int] = set()  # what the store holds
        self._looked = False
        self._newest: Pointer | None = None  # the newest version seen in the log
        self._handled: Promotion | None = None  # the promotion whose version is archived, or cannot be
        self.archived: list[int] = []

    async def follow(self) -> None:
        """Follow the versions once the topics are there. Call it again after broker trouble."""
        federation = self._federation
        if not await federation.wait_for_topics(federation.topics.models, federation.topics.control):
            return
        if not self._looked:
            await self._look()
        models = federation.topics.models
        async with AsyncExitStack() as stack:
            control = await federation.until_stop(stack.enter_async_context(federation.control()))
            heads = await stack.enter_async_context(federation.reader(models))
            payloads = await stack.enter_async_context(federation.reader(models, start="latest", check_crcs=False))
            await self._follow(control, heads, federation.replica(payloads))

    async def _look(self) -> None:
        """See what is archived, and where to go on."""
        await self._reach(self._store.check_writable)  # now, and not once a version is to be kept
        stored = await self._reach(self._store.numbers)
        self._numbers = set(stored)
        self._export()
        for number in reversed(stored):
            if (entry := await self._entry(number)) is not None:
                self._newest = entry.at
                break
        self._looked = True

    async def _follow(self, control: ControlView, models: Reader, replica: Replica) -> None:
        standing = Standing()

        def overtaken(error: OffsetGone, _: object) -> None:
            nonlocal standing
            standing = Standing()  # the chain below the next versions may be gone
            logger.warning("retention deleted versions before they were seen (%s); going on with the oldest", error)

        following = HeadStream(models, VersionHead, on_gap=overtaken)
        if self._newest is not None:
            beginning = self._newest.beginning
            if (at := TopicPartition(self._federation.topics.models, beginning.partition)) in models.partitions:
                models.seek(at, beginning.offset)
        while not self._federation.shutdown.requested:
            # The end is written after the last version: once it is known, no version follows those in the log now.
            await control.poll(0)
            ended = control.finished is not None and await self._federation.until_stop(models.lag()) == 0
            if control.promoted is not None and control.promoted != self._handled:
                await self._archive_promoted(control.promoted, replica)
            if ended:
                if self._newest is not None and self._rule.keep != "promoted":
                    await self._archive(self._newest, replica, control.promoted)
                return
            for logged in await following.heads(_POLL_SECONDS):
                place = standing.pointer(logged.head, logged.partition, logged.offset)
                await self._see(logged.head, place, replica, control.promoted)

    async def _see(self, head: VersionHead, at: Pointer | None, replica: Replica, promotion: Promotion | None) -> None:
        if self._federation.shutdown.requested:
            return
        number = head.number
        await self._check(head)
        if at is None or (self._newest is not None and number <= self._newest.version):
            return  # the chain below the next versions, or the rest of a chain that retention cut
        every = self._rule.keep == "every" and number % self._rule.every == 0
        if every or (promotion is not None and promotion.version == number):
            await self._archive(at, replica, promotion)
        self._newest = at

    async def _check(self, head: VersionHead) -> None:
        """Raise ConfigError when the store has this version of another run."""
        entry = await self._entry(head.number) if head.number in self._numbers else None
        if entry is not None and not entry.is_of(describe(head)):
            raise ConfigError(
                f"registry.url: it holds version {head.number} of another run of federation {self._federation.name}; "
                "give this run a folder or a name of its own"
            )

    async def _archive_promoted(self, promotion: Promotion, replica: Replica) -> None:
        """Archive a promoted version that was seen before; one that is still to come is archived when it is seen."""
        number = promotion.version
        if number not in self._numbers:
            if self._newest is None or number > self._newest.version:
                return
            at = await self._federation.until_stop(self._find(number))
            if at is None:
                logger.error("version %d is promoted and cannot be archived: it is no longer in the log", number)
            else:
                await self._archive(at, replica, promotion)
        self._handled = promotion

    async def _find(self, number: int) -> Pointer | None:
        async with version_index(self._federation.broker, self._federation.topics.models) as index:
            return await index.pointer(number)

    async def _archive(self, at: Pointer, replica: Replica, promotion: Promotion | None) -> None:
        if at.version in self._numbers:
            return
        try:
            version = await self._federation.until_stop(replica.move_to(at, _FETCH_SECONDS))
        except OffsetGone:
            logger.warning("version %d is not archived: retention has just deleted it", at.version)
            return
        except Rejected as error:
            logger.error("version %d is not archived: it cannot be read: %s", at.version, error)
            return
        entry = await self._reach(partial(self._store.save, version, at))
        self._numbers.add(at.version)
        self.archived.append(at.version)
        ARCHIVED.inc()
        ARCHIVED_BYTES.inc(entry.size)
        self._export()
        logger.info("version %d is archived (%d bytes)", at.version, entry.size)
        await self._prune(promotion)

    async def _prune(self, promotion: Promotion | None) -> None:
        """Delete the oldest versions above `registry.most`, but not the promoted one and the one before it."""
        if self._rule.most is None:
            return
        safe = set() if promotion is None else {promotion.version, *promotion.history[-1:]}
        for number in sorted(self._numbers - safe)[: -self._rule.most]:
            await self._reach(partial(self._store.delete, number))
            self._numbers.discard(number)
            self._export()
            logger.info("version %d is deleted from the registry: registry.most is %d", number, self._rule.most)

    def _export(self) -> None:
        HELD.set(len(self._numbers))
        NEWEST.set(max(self._numbers, default=0))

    async def _entry(self, number: int) -> ArchivedVersion | None:
        """Read what the store says of a version; None where that is damaged."""
        try:
            return await self._reach(partial(self._store.entry, number))
        except Damaged as error:
            logger.error("%s", error)
            return None

    async def _reach(self, work: Callable[[], T]) -> T:
        """Do `work` on the store, again while it does not answer.

        Raises:
            BrokerUnavailable: A stop comes first.
        """

        # `work` may return None, which would mean a stop.
        async def attempt() -> tuple[T]:
            return (await self._federation.run(work),)

        done = await keep_trying(
            attempt, self._federation.shutdown, "trying again", trouble=StoreUnavailable, need=STORE
        )
        if done is None:
            raise BrokerUnavailable("a stop was asked for before the store answered")
        return done[0]
