"""The newest versions with their manifests, from the heads in `<f>.models`: bounded."""

from collections.abc import Iterator
from dataclasses import replace

from llmos_stream.log.scan import LoggedHead
from llmos_stream.types import VersionHead

_VERSIONS = 200
_CONTRIBUTIONS = 20_000


class RecentVersions:
    """At most 200 versions, and at most 20,000 contributions in all. Their heads have no layout."""

    def __init__(self, versions: int = _VERSIONS, contributions: int = _CONTRIBUTIONS) -> None:
        self._max_versions = versions
        self._max_contributions = contributions
        self._kept: dict[int, LoggedHead[VersionHead]] = {}
        self._contributions = 0

    def add(self, head: VersionHead, partition: int, offset: int) -> None:
        """Add a version, and drop the oldest ones above the bounds."""
        if head.number in self._kept or (len(self._kept) >= self._max_versions and head.number < min(self._kept)):
            return
        before = next(reversed(self._kept.values())).head if self._kept else head
        # Equal settings and builds are shared, not kept once for each version.
        rule = before.rule if head.rule == before.rule else head.rule
        build = before.build if head.build == before.build else head.build
        self._kept[head.number] = LoggedHead(replace(head, tensors=None, rule=rule, build=build), partition, offset)
        self._contributions += len(head.manifest)
        while len(self._kept) > 1 and (
            len(self._kept) > self._max_versions or self._contributions > self._max_contributions
        ):
            gone = self._kept.pop(min(self._kept))
            self._contributions -= len(gone.head.manifest)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[LoggedHead[VersionHead]]:
        return iter([self._kept[number] for number in sorted(self._kept)])

    def get(self, number: int) -> LoggedHead[VersionHead] | None:
        return self._kept.get(number)
