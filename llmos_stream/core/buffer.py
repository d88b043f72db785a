"""Updates that wait to become a version: their manifest, and when it is time."""

import math

from llmos_stream.types import Contribution


class Buffer:
    """Full at `capacity` updates, and due `deadline_seconds` (None: never) after its first, once it has the `least`."""

    def __init__(self, capacity: int, deadline_seconds: float | None, least: int = 1) -> None:
        self.capacity = capacity
        self.deadline_seconds = deadline_seconds
        self.least = least
        self.patience = math.inf
        """For how long others are waited for after the first, where that is less than the deadline."""
        self.opened_at: float | None = None
        self.contributions: list[Contribution] = []

    def __len__(self) -> int:
        return len(self.contributions)

    def add(self, contribution: Contribution, now: float) -> None:
        if self.opened_at is None:
            self.opened_at = now
        self.contributions.append(contribution)

    def deadline(self) -> float | None:
        """When it must become a version by time alone; None while there is no such time."""
        if self.opened_at is None or self.deadline_seconds is None or len(self) < self.least:
            return None
        return self.opened_at + min(self.deadline_seconds, self.patience)

    def due(self, now: float) -> bool:
        """Whether it is full or its deadline has come. An empty buffer is never due."""
        deadline = self.deadline()
        return len(self) >= self.capacity or (deadline is not None and now >= deadline)

    def drain(self) -> tuple[Contribution, ...]:
        """The manifest; leaves the buffer empty. Raises ValueError if it was empty already."""
        if not self.contributions:
            raise ValueError("an empty buffer makes no version")
        manifest = tuple(self.contributions)
        self.contributions, self.opened_at = [], None
        return manifest
