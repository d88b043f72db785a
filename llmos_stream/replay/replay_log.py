"""A federation's log, opened for replay: weights, moments and residuals by version, updates by contribution."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from contextlib import AsyncExitStack
from typing import Self

from torch import Tensor

from llmos_stream.broker import Reader, Topics
from llmos_stream.core import Changes, Rule, Update
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import Replica
from llmos_stream.log.snapshots import Kept, Owed, fetch_snapshots
from llmos_stream.log.versions import Version, rolled_back_to
from llmos_stream.replay.index import Index, Missing, UpdateMissing, read_index
from llmos_stream.replay.updates import RecordedUpdates, decode_recorded
from llmos_stream.types import Contribution, VersionHead

_FETCH_SECONDS = 120.0
_HELD_BYTES = 256 << 20
_FEWEST_HELD = 2
_MARK = ".shadow."


class ReplayLog:
    """Use as an async context manager, from one task. Holds some models, as `_HELD_BYTES` allows."""

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

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    def rule(self, head: VersionHead, changes: Changes | None = None) -> Rule:
        """Return the rule that a head records, with `changes`. Raises as `Rule.of` does."""
        return Rule.of(head.rule, changes, trusted=self._trusted)

    async def version(self, number: int) -> Version:
        """Return a published version with its weights, verified. Raises as `weights` does."""
        return Version(self.index.entry(number).head, self.index.layout(number), await self.weights(number))

    async def weights(self, number: int) -> Tensor:
        """Return the published weights of a version (flat; do not write to them).

        Raises:
            Missing: They are not in the log, or are damaged.
        """
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        pointer = self.index.entry(number).at
        topic = self._federation.topics.models
        if self._replica is None:
            self._replica = self._federation.replica(await self._reader(topic))
        try:
            found = await self._replica.move_to(pointer, _FETCH_SECONDS)
        except OffsetGone:
            raise Missing(f"version {number} at {topic} offset {pointer.offset} has just been deleted") from None
        except Rejected as error:
            raise Missing(f"version {number} at {topic} offset {pointer.offset} cannot be read: {error}") from None
        weights = found.weights.clone()  # the replica goes on to others
        self.hold(number, weights)
        return weights

    def hold(self, number: int, weights: Tensor) -> None:
        """Hold the weights of a version, which were rebuilt and are those published, bit for bit."""
        self._held[number] = weights
        most = max(_FEWEST_HELD, _HELD_BYTES // max(4 * weights.numel(), 1))
        while len(self._held) > most:
            self._held.popitem(last=False)

    async def moments(self, number: int) -> Mapping[str, Tensor]:
        """Return the moments kept with a version, by name; empty where the log has none.

        Raises:
            Missing: They are damaged.
        """
        return (await self._kept(number, self.index.moments(number))).moments

    async def owed(self, number: int) -> Owed:
        """Return the error-feedback residuals after a version; none after a full one.

        Raises:
            Missing: It is not in the log, or is damaged.
        """
        if (offsets := self.index.residuals(number)) is None:
            raise Missing(f"what version {number} left out (its residual) is not in the log")
        return (await self._kept(number, offsets)).owed

    async def _kept(self, number: int, offsets: Mapping[str, int]) -> Kept:
        if not offsets:
            return Kept({}, {})
        try:
            reader = await self._reader(self._federation.topics.snapshots)
            layout = self.index.layout(number)
            return await fetch_snapshots(self._federation, reader, offsets, number, layout, _FETCH_SECONDS)
        except (OffsetGone, Rejected) as error:
            names = " and ".join(sorted(offsets))
            raise Missing(f"the {names} of version {number} cannot be read: {error}") from None

    async def updates(self, ahead: Iterable[Contribution], number: int) -> RecordedUpdates:
        """Return a reader of the updates of `ahead`, in that order: of the model of version `number`.

        Use one at a time.
        """
        topics = self._federation.topics if self._live is None else Topics(self._live)
        reader = await self._reader(topics.updates)
        source = RecordedUpdates(reader, ahead, self.index.fragments(number), self._federation.wire)
        await source.begin()
        return source

    async def take(self, source: RecordedUpdates, item: Contribution, parent: int) -> Update:
        """Return one update, verified against its contribution to the version after `parent`, and decoded.

        Raises:
            UpdateMissing: It is not in the log, or is not what the manifest names.
        """
        message = await source.take(item)
        # A shadow names its own versions in the manifest, and its updates name the live run's.
        folded_at = None if self._live else parent
        return await self.offload.run(decode_recorded, message, item, folded_at, source.fragments)

    async def _reader(self, topic: str) -> Reader:
        if topic not in self._readers:
            reader = self._federation.broker.reader([topic], start="latest", check_crcs=False)
            self._readers[topic] = await self._opened.enter_async_context(reader)
        return self._readers[topic]


async def kept_span(log: ReplayLog, numbers: range, without: Set[str]) -> tuple[int, str | None]:
    """Return the oldest version of the log from which `numbers` can be run again, and why none older will do.

    From there on, every update is in the log but for those of the clients in `without`. There is no reason where the
    version is the parent of the first of `numbers`.

    Raises:
        Missing: Not even the newest version can be run again.
    """
    index = log.index
    newest = numbers.stop - 1
    index.entry(newest)
    manifests = [entry.head.manifest for number, entry in index.versions.items() if number in numbers]
    source = await log.updates((item for items in manifests for item in items), newest)
    why: str | None = None
    first = newest
    while first >= numbers.start and why is None:
        try:
            head = index.entry(first).head
            if head.parent is None:
                break
            if (equals := rolled_back_to(head)) is not None:
                raise Missing(f"version {first} went back to version {equals}, and begins anew there")
            if head.parent != first - 1 or head.parent not in index.versions:
                raise Missing(f"version {head.parent}, the parent of {first}, is not in the log")
            for item in head.manifest:
                if item.client_id not in without:
                    source.check_kept(item)
        except UpdateMissing as missing:
            if not missing.gone:
                raise
            why = str(missing)
        except Missing as missing:
            why = str(missing)
        else:
            first -= 1
    if first == newest:
        raise Missing(why or f"version {newest} is where the log begins: there is nothing to tell again")
    return first, why


def shadow_of(live: str, name: str) -> str:
    """Return the name of the shadow `name`'s own federation."""
    return f"{live}{_MARK}{name}"


def live_of(federation: str) -> str | None:
    """Return the federation whose updates a shadow folds; None for one that is no shadow."""
    live, mark, _ = federation.rpartition(_MARK)
    return live if mark else None
