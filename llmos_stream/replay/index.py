"""What a replay can start from: the heads of all versions and snapshots in the log, and where each begins."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.errors import LlmosError, TopicMissing
from llmos_stream.log import Pointer
from llmos_stream.log.index import version_index
from llmos_stream.log.scan import read_heads
from llmos_stream.log.snapshots import is_residual, residual_name
from llmos_stream.log.versions import fragments_of
from llmos_stream.types import Fragment, SnapshotHead, VersionHead


class Missing(LlmosError):
    """What a replay needs is not in the log, or is not what was recorded. The message says what."""


class UpdateMissing(Missing):
    """An update that a manifest names. `gone`: retention deleted it; otherwise the log holds something else there."""

    def __init__(self, detail: str, *, gone: bool) -> None:
        super().__init__(detail)
        self.gone = gone


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the log."""

    head: VersionHead
    at: Pointer


@dataclass(frozen=True)
class Index:
    """The versions kept, by number in order; of some also where snapshots begin, by name: moments and the residual.

    Deltas of a chain whose full version is not kept are left out.
    """

    versions: Mapping[int, Entry]
    snapshots: Mapping[int, Mapping[str, int]]

    @property
    def numbers(self) -> range:
        """All numbers from the oldest version kept to the newest; empty where there is none."""
        return range(min(self.versions), max(self.versions) + 1) if self.versions else range(0)

    def moments(self, number: int) -> dict[str, int]:
        """Return where the moments kept with a version begin; empty where the log has none."""
        return {name: offset for name, offset in self.snapshots.get(number, {}).items() if not is_residual(name)}

    def residuals(self, number: int) -> dict[str, int] | None:
        """Return where what is owed after a version begins, by name: empty after a full one, None where a part is gone.

        Each range is owed for that a version since the full one has moved.
        """
        full = self.entry(number).at.beginning.version
        kept_between = (self.versions.get(one) for one in range(full + 1, number + 1))
        moved = {entry.head.range for entry in kept_between if entry is not None}
        kept = self.snapshots.get(number, {})
        names = sorted(map(residual_name, moved))
        return {name: kept[name] for name in names} if kept.keys() >= set(names) else None

    def entry(self, number: int) -> Entry:
        """Return a version.

        Raises:
            Missing: It is not in the log.
        """
        if number in self.versions:
            return self.versions[number]
        numbers = self.numbers
        if not numbers:
            raise Missing("the log holds no version")
        if number < numbers.start:
            raise Missing(f"version {number} has been deleted by retention (the oldest kept is {numbers.start})")
        raise Missing(f"version {number} is not in the log, which holds {numbers.start} to {numbers.stop - 1}")

    def layout(self, number: int) -> Layout:
        """Return the layout of a version.

        Raises:
            Missing: The version, or the full one that it stands on, is not in the log.
        """
        full = self.entry(self.entry(number).at.beginning.version).head
        if full.tensors is None or full.layout_digest != self.entry(number).head.layout_digest:
            raise Missing(f"version {number} does not stand on a full version of its layout")
        return Layout.from_specs(full.tensors, full.tied)

    def fragments(self, number: int) -> tuple[Fragment, ...]:
        """Return the fragments of a version's model; one where it moves as a whole.

        Raises:
            Missing: As `layout`; or the model cannot be cut as the version's rule says.
        """
        try:
            return self.layout(number).fragments(fragments_of(self.entry(number).head.rule))
        except ValueError as error:
            raise Missing(f"version {number}: {error}") from None


async def read_index(broker: Broker, topics: Topics) -> Index:
    """Read the heads in `<f>.models` and `<f>.snapshots` once."""
    versions: dict[int, Entry] = {}
    head: VersionHead | None = None
    async with version_index(broker, topics.models) as index:
        async for found, at in index.walk():
            if at is not None:
                head = _shared(found.head, head)
                versions[head.number] = Entry(head, at)
    snapshots: dict[int, dict[str, int]] = {}
    with suppress(TopicMissing):  # a federation older than this topic
        async with broker.reader([topics.snapshots], start="earliest") as reader:
            async for snapshot in read_heads(reader, SnapshotHead):
                snapshots.setdefault(snapshot.head.version, {})[snapshot.head.tensor] = snapshot.offset
    return Index(dict(sorted(versions.items())), snapshots)


def _shared(head: VersionHead, before: VersionHead | None) -> VersionHead:
    """Share what two heads have in common: thousands of them may list thousands of tensors."""
    if before is None:
        return head
    return replace(
        head,
        tensors=before.tensors if head.tensors == before.tensors else head.tensors,
        rule=before.rule if head.rule == before.rule else head.rule,
        build=before.build if head.build == before.build else head.build,
    )
