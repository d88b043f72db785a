"""Which versions of a log belong to its run, and which full version each stands on: by what their heads say alone."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmos_stream.errors import Rejected
from llmos_stream.log.versions import check_follows
from llmos_stream.types import VersionHead, VersionKind
from llmos_stream.wire.control import Pointer

_CHAINS_KEPT = 64
_UNSURE_KEPT = 1024


@dataclass(frozen=True, slots=True)
class LocatedVersion:
    """A version's head, where its message begins, and of how many records it is."""

    head: VersionHead
    partition: int
    offset: int
    records: int
    digest: bytes = b""
    """See `wire.Prelude.digest`."""

    def continues(self, before: "LocatedVersion") -> bool:
        """Whether this is what a run publishes after `before`."""
        return self.head.number == before.head.number + 1 or self.head.parent == before.head.number

    def follows(self, before: "LocatedVersion") -> bool:
        """Whether `before` is the very version that this one names as its parent."""
        try:
            check_follows(before.head, before.digest, self.head)
        except Rejected:
            return False
        return True


def pointer_to(chain: Sequence[LocatedVersion]) -> Pointer:
    """Where to find the weights of the last of these versions, each of which stands on the one before."""
    full, last = (Pointer(version.head.number, version.partition, version.offset) for version in (chain[0], chain[-1]))
    return full if len(chain) == 1 else replace(last, full=full)


class Standing:
    """Knows of each version that it is shown, in the order of the log, where to find its weights."""

    def __init__(self) -> None:
        # By the newest version of a chain. What a stranger wrote between two versions begins a chain of its own.
        self._full: OrderedDict[int, Pointer] = OrderedDict()

    def pointer(self, head: VersionHead, partition: int, offset: int) -> Pointer | None:
        """Where the version begins, with the full one that it stands on; None for a delta on one that was not shown."""
        at = Pointer(head.number, partition, offset)
        full = at if head.kind is VersionKind.FULL else self._full.pop(head.parent or 0, None)
        if full is None:
            return None
        self._full[head.number] = full
        if len(self._full) > _CHAINS_KEPT:
            self._full.popitem(last=False)
        return at if head.kind is VersionKind.FULL else Pointer(head.number, partition, offset, full)


class Succession:
    """Tells the versions of a run from what others have written between them: each of a run continues the one before.

    Without signatures this is as much as a log says: one who forges two versions in a row may begin a run of his own.
    """

    def __init__(self) -> None:
        self._last: LocatedVersion | None = None
        self._unsure: OrderedDict[int, LocatedVersion] = OrderedDict()  # by number
        self.foreign = 0
        """Versions that are not of the run."""

    def take(self, found: LocatedVersion) -> Sequence[LocatedVersion]:
        """The versions that are known to be of the run now that this one, the next in the log, is known."""
        before = self._last
        if before is not None and found.continues(before):
            known = [found]
        elif (begins := self._continued_by(found)) is not None:
            known = [begins, found]
        else:
            self._keep(found)
            return []
        self.foreign += len(self._unsure) - (len(known) - 1)
        self._unsure.clear()
        self._last = found
        return known

    def rest(self) -> Sequence[LocatedVersion]:
        """What may be of the run at the end of the log: where none continues another, nothing speaks against any."""
        if self._last is None:
            return sorted(self._unsure.values(), key=lambda version: version.head.number)
        self.foreign += len(self._unsure)
        return []

    def _continued_by(self, found: LocatedVersion) -> LocatedVersion | None:
        parent = -1 if found.head.parent is None else found.head.parent
        return self._unsure.get(found.head.number - 1) or self._unsure.get(parent)

    def _keep(self, found: LocatedVersion) -> None:
        self.foreign += found.head.number in self._unsure
        self._unsure[found.head.number] = found
        self._unsure.move_to_end(found.head.number)
        if len(self._unsure) > _UNSURE_KEPT:
            self._unsure.popitem(last=False)
            self.foreign += 1
