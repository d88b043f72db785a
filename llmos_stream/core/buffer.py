"""Updates that wait to become a version: their manifest, and when it is time."""

import math
from typing import NamedTuple

from llmos_stream.types import Contribution


class Quorum(NamedTuple):
    """So many updates make a version `seconds` after the last of them came: a window of grace for the others."""

    updates: int
    seconds: float


class Buffer:
    """Full at `capacity` updates, and due `deadline_seconds` (None: never) after its first, once it has the `least`.

    Due as well once the grace of its `quorum` is over, where it has one.
    """

    def __init__(
        self, capacity: int, deadline_seconds: float | None, least: int = 1, quorum: Quorum | None = None
    ) -> None:
        self.capacity = capacity
        self.deadline_seconds = deadline_seconds
        self.least = least
        self.quorum = quorum
        self.patience = math.inf
        """For how long others are waited for after the first, where that is less than the deadline."""
        self.opened_at: float | None = None
        self.grace_ends_at = math.inf
        self.contributions: list[Contribution] = []

    def __len__(self) -> int:
        return len(self.contributions)

    def add(self, contribution: Contribution, now: float) -> None:
        if self.opened_at is None:
            self.opened_at = now
        self.contributions.append(contribution)
        if self.quorum is not None and len(self) == self.quorum.updates:
            self.grace_ends_at = now + self.quorum.seconds

    def has_of(self, client_id: str) -> bool:
        """Whether an update of this client waits."""
        return any(item.client_id == client_id for item in self.contributions)

    def sequences_of(self, client_id: str) -> list[int]:
        """The sequences of a client's updates that wait."""
        return [item.sequence for item in self.contributions if item.client_id == client_id]

    def deadline(self) -> float | None:
        """When it must become a version by time alone; None while there is no such time."""
        if self.opened_at is None or len(self) < self.least:
            return None
        ends_at = self.grace_ends_at
        if self.deadline_seconds is not None:
            ends_at = min(ends_at, self.opened_at + min(self.deadline_seconds, self.patience))
        return None if ends_at == math.inf else ends_at

    def due(self, now: float) -> bool:
        """Whether it is full or its deadline has come. An empty buffer is never due."""
        deadline = self.deadline()
        return len(self) >= self.capacity or (deadline is not None and now >= deadline)

    def drain(self) -> tuple[Contribution, ...]:
        """The manifest; leaves the buffer empty. Raises ValueError if it was empty already."""
        if not self.contributions:
            raise ValueError("an empty buffer makes no version")
        manifest = tuple(self.contributions)
        self.contributions, self.opened_at, self.grace_ends_at = [], None, math.inf
        return manifest
