"""What a live run has accepted, as the source of a shadow's updates: the manifests of its versions, in order."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.config import WireSettings
from llmos_stream.core import Rule, Update
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.scan import HeadStream, LoggedHead
from llmos_stream.replay.errors import UpdateMissing
from llmos_stream.replay.updates import UpdateSource, decode_recorded
from llmos_stream.runtime import Offload
from llmos_stream.types import Contribution, VersionHead
from llmos_stream.wire import Refusal

logger = logging.getLogger(__name__)

_FEWEST_STAND_INS = 32

_Place = tuple[int, int]


class AcceptedUpdates:
    """See `roles.source.Source` for the methods. Offsets are those of the live `<f>.models`.

    An update names the live version that it was trained on. It is given with the version that stood in that
    one's place here, which is told once all of the live version's contributions have been folded; up to
    `began`, where the shadow began, both are the same.

    A live version is held until all its contributions are settled, and read again after a restart: those
    that were folded are known as repeats.
    """

    def __init__(self, models: Reader, updates: Reader, layout: Layout, wire: WireSettings, offload: Offload) -> None:
        self._models = models
        self._at = models.partitions[0]
        self._heads = HeadStream(models, VersionHead, on_gap=self._overtaken)
        self._updates = UpdateSource(updates, (), numel=layout.numel, wire=wire, at_once=1)
        self._layout = layout
        self._offload = offload
        self._began = 0
        self._version = 0
        self._stand_ins: dict[int, int] = {}
        self._waiting: deque[VersionHead] = deque()
        self._out: VersionHead | None = None  # whose contributions are being folded
        self._out_last = False  # the last of them is
        self._open: dict[int, set[_Place]] = {}  # by offset of the live version: what is not settled of it
        self._read = 0
        self._committed = -1
        self._rested = False  # since something was read last

    async def begin(self, version: int, offset: int) -> None:
        """Start with what was accepted after the live `version`, which begins at `offset`."""
        await self._updates.begin()
        self._began = self._version = version
        self._models.seek(self._at, offset)
        self._read = offset

    async def resume(self, remembered: Mapping[str, object]) -> None:
        await self._updates.begin()
        self._read = self._committed = await self._models.position(self._at)
        match remembered:
            case {"began": int(began), "stand_ins": dict(pairs)}:
                self._began = began
                self._stand_ins = {int(live): int(here) for live, here in pairs.items()}
            case _:
                logger.error(
                    "the log does not hold which versions stand in for which: staleness will be wrong for a while"
                )

    async def receive(self, timeout_seconds: float, version: int) -> AsyncGenerator[Update | Refusal, None]:
        """The contributions of one live version."""
        self._version = version
        if not self._waiting:
            await self._look(timeout_seconds)
        if not self._waiting:
            return
        self._out = head = self._waiting.popleft()
        for number, item in enumerate(head.manifest, start=1):
            self._out_last = number == len(head.manifest)
            base = (head.parent or 0) - item.staleness
            try:
                message = await self._updates.take(item)
                update = await self._offload.run(decode_recorded, message, item, base, self._layout.numel)
            except UpdateMissing as missing:
                logger.error("left out: %s", missing)
                self.release(item.partition, item.offset)
                continue
            del message
            yield replace(update, head=replace(update.head, base_version=self._stand_in(base)))
        self._remember_stand_in(head, self._version)
        self._out, self._out_last = None, False

    def rested(self) -> None:
        self._rested = True

    def release(self, partition: int, offset: int) -> None:
        for places in self._open.values():
            places.discard((partition, offset))

    def came(self, partition: int, offset: int) -> None:
        return None  # what is folded here was traced where it was folded first

    def safe(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
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

    def take_seconds(self) -> float:
        return 0.0  # nobody is told a pace: the live run's clients send to the live run

    def remember(self, version: int) -> dict[str, object]:
        """`version` is made by the update that was given last, or by the deadline."""
        self._version = version
        if self._out is not None and self._out_last:
            self._remember_stand_in(self._out, version)
        return {"began": self._began, "stand_ins": {str(live): here for live, here in self._stand_ins.items()}}

    async def exhausted(self) -> bool:
        """Whether everything that the live run has accepted by now is in a committed version."""
        nothing_left = not (self._waiting or self._out or any(self._open.values()))
        return nothing_left and await self._models.lag() == 0

    async def _look(self, timeout_seconds: float) -> None:
        found = await self._heads.heads(timeout_seconds)
        self._rested = self._rested and not found
        for logged in found:
            self._read = logged.offset + 1
            if logged.head.number > self._began:
                self._take_in(logged)
        if self._waiting:
            await self._updates.extend(item for head in self._waiting for item in head.manifest)

    def _overtaken(self, error: OffsetGone, _: object) -> None:
        pause = ", during a pause" if self._rested else ""
        logger.error("live versions were deleted before they were read%s (%s); going on with the rest", pause, error)

    def _take_in(self, logged: LoggedHead[VersionHead]) -> None:
        self._waiting.append(logged.head)
        self._open[logged.offset] = {(item.partition, item.offset) for item in logged.head.manifest}

    def _stand_in(self, base: int) -> int:
        """What stood here in place of a live version; of one that was missed, what stood for the one before."""
        if base <= self._began:
            return base
        known = [live for live in self._stand_ins if live <= base]
        return self._stand_ins[max(known)] if known else self._began

    def _remember_stand_in(self, head: VersionHead, version: int) -> None:
        self._stand_ins[head.number] = version
        try:
            most = max(Rule.of(head.rule).staleness.maximum + 2, _FEWEST_STAND_INS)
        except Rejected:
            most = _FEWEST_STAND_INS
        while len(self._stand_ins) > most:
            del self._stand_ins[min(self._stand_ins)]
