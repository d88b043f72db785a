"""A federation's log, opened for replay: weights, moments and updates by what names them."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from torch import Tensor

from llmos_stream.broker import Reader, Topics
from llmos_stream.codec import Layout, Residual
from llmos_stream.core import Changes, Rule, Update
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log import Replica, Version
from llmos_stream.log.federation import Federation
from llmos_stream.log.snapshots import RESIDUAL, Kept, fetch_snapshots
from llmos_stream.replay.errors import Missing
from llmos_stream.replay.index import Index, read_index
from llmos_stream.replay.naming import live_of
from llmos_stream.replay.updates import RecordedUpdates, decode_recorded
from llmos_stream.types import Contribution, VersionHead, VersionKind

_FETCH_SECONDS = 120.0
_HELD_BYTES = 256 << 20
_FEWEST_HELD = 2


class ReplayLog:
    """Use as an async context manager; not for two tasks at once. Some models are held, as `_HELD_BYTES` allows."""

    index: Index

    def __init__(self, federation: Federation, trusted: Set[str] = frozenset()) -> None:
        """`trusted` are the names of rules that local settings use (see `core.Rule`)."""
        self.offload = federation.offload
        self._federation = federation
        self._trusted = trusted
        self._live = live_of(federation.name)
        self._opened = AsyncExitStack()
        self._readers: dict[str, Reader] = {}
        self._replica: Replica | None = None
        self._held: OrderedDict[int, Tensor] = OrderedDict()

    async def __aenter__(self) -> Self:
        self.index = await read_index(self._federation.broker, self._federation.topics)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    def rule(self, head: VersionHead, changes: Changes | None = None) -> Rule:
        """The rule that a head records, with `changes`. Raises as `Rule.of` does."""
        return Rule.of(head.rule, changes, trusted=self._trusted)

    async def version(self, number: int) -> Version:
        """A published version with its weights, verified. Raises Missing."""
        return Version(self.index.entry(number).head, self.index.layout(number), await self.weights(number))

    async def weights(self, number: int) -> Tensor:
        """The published weights of a version (flat; not to be written to). Raises Missing."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        pointer = self.index.entry(number).at
        topic = self._federation.topics.models
        if self._replica is None:
            self._replica = Replica(await self._reader(topic), topic, self._federation.wire, self.offload)
        try:
            found = await self._replica.move_to(pointer, _FETCH_SECONDS)
        except OffsetGone:
            raise Missing(f"version {number} at {topic} offset {pointer.offset} has just been deleted") from None
        except Rejected as error:
            raise Missing(f"version {number} at {topic} offset {pointer.offset} cannot be read: {error}") from None
        weights = found.weights.clone()  # the replica goes on to others
        self.remember(number, weights)
        return weights

    def remember(self, number: int, weights: Tensor) -> None:
        """Hold the weights of a version: they were computed anew and are those published, bit for bit."""
        self._held[number] = weights
        most = max(_FEWEST_HELD, _HELD_BYTES // max(4 * weights.numel(), 1))
        while len(self._held) > most:
            self._held.popitem(last=False)

    async def moments(self, number: int) -> Mapping[str, Tensor]:
        """The moments kept with a version, by name; empty where the log has none. Raises Missing for damaged ones."""
        offsets = {name: pointer.offset for name, pointer in self.index.moments.get(number, {}).items()}
        return (await self._kept(number, offsets)).moments

    async def residual(self, number: int) -> Residual | None:
        """What readers of a version are owed; None after a full one. Raises Missing where it is not kept."""
        if self.index.entry(number).head.kind is VersionKind.FULL:
            return None
        if number not in self.index.residuals:
            raise Missing(f"what version {number} left out (its residual) is not in the log")
        return (await self._kept(number, {RESIDUAL: self.index.residuals[number].offset})).residual

    async def _kept(self, number: int, offsets: Mapping[str, int]) -> Kept:
        if not offsets:
            return Kept({}, None)
        try:
            return await fetch_snapshots(
                await self._reader(self._federation.topics.snapshots),
                offsets,
                number,
                self.index.layout(number),
                wire=self._federation.wire,
                offload=self.offload,
                timeout_seconds=_FETCH_SECONDS,
            )
        except (OffsetGone, Rejected) as error:
            names = " and ".join(sorted(offsets))
            raise Missing(f"the {names} of version {number} cannot be read: {error}") from None

    async def updates(self, ahead: Iterable[Contribution], layout: Layout) -> RecordedUpdates:
        """A source of the updates of `ahead`, in that order. One at a time."""
        topics = self._federation.topics if self._live is None else Topics(self._live)
        reader = await self._reader(topics.updates)
        source = RecordedUpdates(reader, ahead, numel=layout.numel, wire=self._federation.wire)
        await source.begin()
        return source

    async def take(self, source: RecordedUpdates, item: Contribution, base_version: int, layout: Layout) -> Update:
        """One update, verified against its contribution and decoded. Raises UpdateMissing."""
        message = await source.take(item)
        # A shadow names its own versions in the manifest, and its updates name the live run's.
        base = None if self._live else base_version
        return await self.offload.run(decode_recorded, message, item, base, layout.numel)

    async def _reader(self, topic: str) -> Reader:
        if topic not in self._readers:
            reader = self._federation.broker.reader([topic], start="latest", check_crcs=False)
            self._readers[topic] = await self._opened.enter_async_context(reader)
        return self._readers[topic]
