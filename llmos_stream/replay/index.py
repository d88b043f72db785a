"""What the log holds to replay from: the heads of all versions and snapshots, and where each begins."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.errors import TopicMissing
from llmos_stream.log import Pointer, version_index
from llmos_stream.log.scan import read_heads
from llmos_stream.log.snapshots import RESIDUAL
from llmos_stream.replay.errors import Missing
from llmos_stream.types import SnapshotHead, VersionHead


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the log."""

    head: VersionHead
    at: Pointer


@dataclass(frozen=True)
class Index:
    """The versions kept, in order of their numbers, and for some of them the moments, by name, and the residual.

    Deltas of a chain whose full version is not kept are left out.
    """

    versions: Mapping[int, Entry]
    moments: Mapping[int, Mapping[str, Pointer]]
    residuals: Mapping[int, Pointer] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        """From the oldest to the newest version kept; empty where there is none."""
        return range(min(self.versions), max(self.versions) + 1) if self.versions else range(0)

    def entry(self, number: int) -> Entry:
        """Raises Missing for a version that is not in the log."""
        if number in self.versions:
            return self.versions[number]
        numbers = self.numbers
        if not numbers:
            raise Missing("the log holds no version")
        if number < numbers.start:
            raise Missing(f"version {number} has been deleted by retention (the oldest kept is {numbers.start})")
        raise Missing(f"version {number} is not in the log, which holds {numbers.start} to {numbers.stop - 1}")

    def layout(self, number: int) -> Layout:
        """The layout of a version. Raises Missing."""
        full = self.entry(self.entry(number).at.beginning.version).head
        if full.tensors is None or full.layout_digest != self.entry(number).head.layout_digest:
            raise Missing(f"version {number} does not stand on a full version of its layout")
        return Layout.from_specs(full.tensors)


async def read_index(broker: Broker, topics: Topics) -> Index:
    """Go through `<f>.models` and `<f>.snapshots` once, keeping heads alone."""
    versions: dict[int, Entry] = {}
    head: VersionHead | None = None
    async with version_index(broker, topics.models) as index:
        async for found, at in index.walk():
            if at is not None:
                head = _shared(found.head, head)
                versions[head.number] = Entry(head, at)
    moments, residuals = await _read_snapshots(broker, topics)
    return Index(dict(sorted(versions.items())), moments, residuals)


async def _read_snapshots(broker: Broker, topics: Topics) -> tuple[dict[int, dict[str, Pointer]], dict[int, Pointer]]:
    moments: dict[int, dict[str, Pointer]] = {}
    residuals: dict[int, Pointer] = {}
    try:
        async with broker.reader([topics.snapshots], start="earliest") as reader:
            async for found in read_heads(reader, SnapshotHead):
                pointer = Pointer(found.head.version, found.partition, found.offset)
                if found.head.tensor == RESIDUAL:
                    residuals[found.head.version] = pointer
                else:
                    moments.setdefault(found.head.version, {})[found.head.tensor] = pointer
    except TopicMissing:  # a federation older than this topic
        pass
    return moments, residuals


def _shared(head: VersionHead, before: VersionHead | None) -> VersionHead:
    """The same, with what the version before says too held once: thousands of heads may list thousands of tensors."""
    if before is None:
        return head
    return replace(
        head,
        tensors=before.tensors if head.tensors == before.tensors else head.tensors,
        rule=before.rule if head.rule == before.rule else head.rule,
        build=before.build if head.build == before.build else head.build,
    )
