"""How much a client trains for its next update: whole epochs, a number of steps, or as many as suit its speed.

With `client.local_steps = auto` a client of speed v (steps a second) does, where the fastest has speed v_max,

    steps = max(1, floor(v / v_max * H))

of the H steps of its epochs: slow clients do fewer and send as often as the fast ones, so that their updates are less
stale. That is DyLU (Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling"). The aggregator tells
v_max with its pace (see `core.speeds`). The first update of a process is of whole epochs, which tells v and H.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.types import LOCAL_STEPS

STEPS_PER_SECOND = "steps_per_second"
"""The metric of an update that says how fast its client is."""


class LocalSteps:
    """Hands out the batches of one update after the other.

    Where steps are counted, an update goes on where the last one stopped, so that each batch has its turn.
    """

    def __init__(self, batches: Iterable[Batch], epochs: int, steps: int | Literal["auto"] | None) -> None:
        self._batches = batches
        self._epochs = epochs
        self._steps = steps
        self._stream: Iterator[Batch] | None = None
        self._full: int | None = None  # H, as soon as it is known
        self._examples: int | None = None  # of an epoch, likewise
        self._speed = 0.0

    def use(self, epochs: int, steps: int | Literal["auto"] | None) -> None:
        """Do as much as this from the next update on."""
        if epochs != self._epochs:
            self._full = None
        self._epochs, self._steps = epochs, steps

    def passes(self, fastest: float) -> Sequence[Iterable[Batch]]:
        """What the next update is trained on, one after the other. `fastest` is v_max, 0 where it is not known."""
        if self._steps is None or (self._steps == "auto" and self._full is None):
            return [self._batches] * self._epochs
        self._stream = self._stream or _endless(self._batches)
        return [islice(self._stream, self._number(fastest))]

    def whole(self, epochs: int) -> Sequence[Iterable[Batch]]:
        """So many epochs, however much an update is trained on."""
        return [self._batches] * epochs

    def done(self, steps: int, seconds: float) -> dict[str, float]:
        """Note how long an update of so many steps took; what it should say of itself.

        A device that is slower than this one would have taken longer: `seconds` are its own.
        """
        if self._steps != "auto":
            return {LOCAL_STEPS: float(steps)}
        self._full = self._full or steps
        self._speed = steps / max(seconds, 1e-6)
        return {LOCAL_STEPS: float(steps), STEPS_PER_SECOND: self._speed}

    def share(self, steps: int) -> float:
        """How much of a whole training an update of so many steps is, where steps follow the speed."""
        return 1.0 if self._steps != "auto" or self._full is None else steps / self._full

    def weight(self, num_examples: int) -> int:
        """For how many examples an update counts that was trained on so many.

        Where steps follow the speed, for those of an epoch: the steps that a slow client leaves out make its update
        smaller already.
        """
        if self._steps != "auto":
            return num_examples
        self._examples = self._examples or num_examples
        return self._examples

    def broke_off(self) -> None:
        """The training failed: an iterator that raised gives nothing any more."""
        self._stream = None

    def _number(self, fastest: float) -> int:
        if self._steps != "auto":
            return self._steps or 1
        full = self._full or 1
        share = min(self._speed / fastest, 1.0) if fastest > 0 else 1.0
        return max(1, math.floor(share * full))


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise TaskError("there is no batch: the loader is empty, or a generator that has already been used up")
