"""What a live run has accepted, as the source of a shadow's updates: the manifests of its versions, in order."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.core import Update
from llmos_stream.errors import OffsetGone
from llmos_stream.log.scan import HeadStream
from llmos_stream.replay.index import UpdateMissing
from llmos_stream.replay.updates import RecordedUpdates, decode_recorded
from llmos_stream.runtime import Offload
from llmos_stream.types import Contribution, Fragment, VersionHead
from llmos_stream.wire import Refusal

logger = logging.getLogger(__name__)

_MOST_BASES = 1024
"""Pairs of versions that a checkpoint holds, about 12 bytes each."""


class AcceptedUpdates:
    """Updates for a shadow. See `roles.aggregator.source.UpdateSource` for the methods.

    Offsets are those of the live `<f>.models`.

    An update names the live version that it was trained on. The shadow gives it the number of its own version in
    place of that. The two are paired once all contributions of the live version are folded. Up to the version that
    the shadow began with, both numbers are the same.

    A live version is held until all its contributions are settled. After a restart it is read again; its
    contributions that were folded before are recognised as repeats.
    """

    def __init__(
        self, models: Reader, updates: Reader, fragments: Sequence[Fragment], wire: WireSettings, offload: Offload
    ) -> None:
        self._models = models
        self._at = models.partitions[0]
        self._heads = HeadStream(models, VersionHead, on_gap=self._overtaken)
        self._updates = RecordedUpdates(updates, (), fragments, wire)
        self._offload = offload
        self._began = 0
        self._version = 0
        self._base_map: dict[int, int] = {}
        self._waiting: deque[VersionHead] = deque()
        self._out: VersionHead | None = None  # whose contributions are being folded
        self._out_last = False  # the last of them is
        self._open: dict[int, set[tuple[int, int]]] = {}  # by offset of the live version: places of what is not settled
        self._read = 0
        self._committed = -1
        self._after_pause = False  # and nothing has been read since

    async def begin(self, version: int, offset: int) -> None:
        """Start after the live `version`, which begins at `offset`."""
        await self._updates.begin()
        self._began = self._version = version
        self._models.seek(self._at, offset)
        self._read = offset

    async def resume(self, checkpoint: Mapping[str, object]) -> None:
        await self._updates.begin()
        self._read = self._committed = await self._models.position(self._at)
        match checkpoint:
            case {"began": int(began), "stand_ins": dict(pairs)}:
                self._began = began
                self._base_map = {int(live): int(here) for live, here in pairs.items()}
            case _:
                logger.error(
                    "the log does not hold which versions stand in for which: staleness will be wrong for a while"
                )

    async def receive(self, timeout_seconds: float, version: int) -> AsyncGenerator[Update | Refusal, None]:
        """Give the contributions of one live version."""
        self._version = version
        if not self._waiting:
            await self._look(timeout_seconds)
        if not self._waiting:
            return
        self._out = head = self._waiting.popleft()
        for number, item in enumerate(head.manifest, start=1):
            self._out_last = number == len(head.manifest)
            # Of a fragment it is newer than the update's own where others have moved while it waited: the live run has
            # not counted those, and they do not come between here.
            base = (head.parent or 0) - item.staleness
            try:
                message = await self._updates.take(item)
                update = await self._offload.run(
                    decode_recorded, message, item, head.parent or 0, self._updates.fragments
                )
            except UpdateMissing as missing:
                logger.error("left out: %s", missing)
                self.release(item.partition, item.offset)
                continue
            del message
            yield replace(update, head=replace(update.head, base_version=self._mapped(base)))
        self._map_version(head, self._version)
        self._out, self._out_last = None, False

    def version_size(self) -> int | None:
        return None if self._out is None else len(self._out.manifest)

    def resumed_after_pause(self) -> None:
        self._after_pause = True

    def release(self, partition: int, offset: int) -> None:
        for places in self._open.values():
            places.discard((partition, offset))

    def span_of(self, partition: int, offset: int) -> None:
        return None  # what is folded here was traced where it was folded first

    def committable_offsets(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
        settled = {(item.partition, item.offset) for item in manifest}
        held = (at for at, places in self._open.items() if places - settled)
        offset = min(held, default=self._read)
        return {self._at: offset} if offset > self._committed else {}

    def committed(self, offsets: Mapping[TopicPartition, int], manifest: Sequence[Contribution] = ()) -> None:
        self._committed = offsets.get(self._at, self._committed)
        for item in manifest:
            self.release(item.partition, item.offset)
        self._open = {at: places for at, places in self._open.items() if places}

    async def lag(self) -> int:
        return await self._models.known_lag()

    def take_busy_seconds(self) -> float:
        return 0.0  # it sets no pace: the clients send to the live run

    def checkpoint(self, version: int) -> dict[str, object]:
        """See `UpdateSource`. `version` is made by the update that was given last, or by the deadline."""
        self._version = version
        if self._out is not None and self._out_last:
            self._map_version(self._out, version)
        return {"began": self._began, "stand_ins": {str(live): here for live, here in self._base_map.items()}}

    async def exhausted(self) -> bool:
        """Say whether a committed version holds everything that the live run has accepted by now."""
        nothing_left = not (self._waiting or self._out or any(self._open.values()))
        return nothing_left and await self._models.lag() == 0

    async def _look(self, timeout_seconds: float) -> None:
        found = await self._heads.heads(timeout_seconds)
        self._after_pause = self._after_pause and not found
        for logged in found:
            self._read = logged.offset + 1
            if logged.head.number > self._began:
                self._waiting.append(logged.head)
                self._open[logged.offset] = {(item.partition, item.offset) for item in logged.head.manifest}
        if self._waiting:
            await self._updates.extend(item for head in self._waiting for item in head.manifest)

    def _overtaken(self, error: OffsetGone, _: object) -> None:
        pause = ", during a pause" if self._after_pause else ""
        logger.error("live versions were deleted before they were read%s (%s); going on with the rest", pause, error)

    def _mapped(self, base: int) -> int:
        """Return the shadow's number for a live version; for one that was missed, that of the one before.

        One that is older than all pairs known is taken to be as many versions before the oldest here as there.
        """
        if base <= self._began or not self._base_map:
            return min(base, self._began)
        oldest = min(self._base_map)
        if base < oldest:
            return max(self._base_map[oldest] - (oldest - base), self._began)
        return self._base_map[max(live for live in self._base_map if live <= base)]

    def _map_version(self, head: VersionHead, version: int) -> None:
        self._base_map[head.number] = version
        while len(self._base_map) > _MOST_BASES:
            del self._base_map[min(self._base_map)]
