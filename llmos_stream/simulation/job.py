"""One client's training: what it begins with, and what comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.core.delta import Delta


@dataclass(slots=True, eq=False)
class Job:
    """Training `number` (counted from 0) of a client, on the weights of a version. The trainer fills in the rest."""

    client: int
    number: int
    version: int
    base: Tensor
    due: float = 0.0
    """When its result is wanted, as far as is known."""
    examples: int = 0
    """How many it goes through."""
    fastest: float = 0.0
    """Steps a second of the fastest client, where it adapts to that."""
    delta: Tensor | Delta | None = None
    buffers: Tensor | None = None
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str | None = None
    """Why nothing came of it."""

    @property
    def is_done(self) -> bool:
        """Whether it was trained, whatever came of it."""
        return self.delta is not None or self.failed is not None


class Trainer(Protocol):
    """Trains clients' models. What comes of a job is the same whichever jobs are trained with it, up to rounding."""

    how: str
    """In words, with the reason where it is not the quickest way."""
    batches: bool
    """Whether it is quicker with several jobs."""

    def begin(self) -> tuple[Layout, Tensor]:
        """The layout, and the weights of version 0."""
        ...

    def size(self, job: Job) -> tuple[int, float]:
        """How many examples the training goes through, and how much of a whole training it is."""
        ...

    def timed(self, job: Job, seconds: float) -> None:
        """How long the training takes on the client's device."""
        ...

    def own(self, client: int) -> Mapping[str, Tensor]:
        """The tensors that a client keeps to itself, by name; none where all are shared."""
        ...

    def train(self, jobs: Sequence[Job]) -> None:
        """Fill in the jobs."""
        ...
