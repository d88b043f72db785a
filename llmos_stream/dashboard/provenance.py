"""The newest versions and what each was made of, from the heads in `<f>.models`: bounded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmos_stream.types import VersionHead

_VERSIONS = 200
_CONTRIBUTIONS = 20_000
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Origin:
    """A version's head without its layout, and where its message begins."""

    head: VersionHead
    partition: int
    offset: int


class Provenance:
    """At most 200 versions, and fewer where their manifests have more than 20,000 contributions together."""

    def __init__(self, versions: int = _VERSIONS, contributions: int = _CONTRIBUTIONS) -> None:
        self._most = versions
        self._most_contributions = contributions
        self._held: dict[int, Origin] = {}
        self._contributions = 0

    def add(self, head: VersionHead, partition: int, offset: int) -> None:
        """Take a version in; the oldest ones make room. One that is held already changes nothing."""
        if head.number in self._held or (len(self._held) >= self._most and head.number < min(self._held)):
            return
        before = next(reversed(self._held.values())).head if self._held else head
        # Thousands of equal settings would be kept otherwise, one with each version.
        rule = before.rule if head.rule == before.rule else head.rule
        build = before.build if head.build == before.build else head.build
        self._held[head.number] = Origin(replace(head, tensors=None, rule=rule, build=build), partition, offset)
        self._contributions += len(head.manifest)
        while len(self._held) > 1 and (len(self._held) > self._most or self._contributions > self._most_contributions):
            gone = self._held.pop(min(self._held))
            self._contributions -= len(gone.head.manifest)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Origin]:
        """In order of their numbers."""
        return iter([self._held[number] for number in sorted(self._held)])

    def get(self, number: int) -> Origin | None:
        return self._held.get(number)
