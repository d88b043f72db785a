"""What a client has learnt in the fragments of a model that it has not sent yet.

A client trains the whole model and sends one fragment of what it has learnt (see `core.fragments`). The rest is
carried: the next training begins with the newest version and what is carried on top, and what that training adds comes
to it. So a fragment is learnt in as many trainings as there are fragments, and what it sends is always the difference
to the version that it names as its base.

With w the weights of the version trained on, c the carry and d what the training adds, the client trains from w + c,
sends the fragment p of c + d, and goes on with c + d, which is 0 in p. The carry becomes durable together with the
update that it is left of (see `state`), so that a kill repeats no training and loses none.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from llmos_stream.core.fragments import next_fragment
from llmos_stream.types import Fragment

logger = logging.getLogger(__name__)


class Cut(NamedTuple):
    """How a version's model is cut, and which of the fragments that version has moved. No fragments: it moves whole."""

    fragments: Sequence[Fragment] = ()
    moved: tuple[int, int] | None = None
    oldest: int = 0
    """The oldest version that an update may still be of."""
    number: int | None = None
    """Of that version, where it is known."""


WHOLE = Cut()


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """A carry as it is kept: `learnt` (flat, the parameters) of the model that has these fragments, by their digests.

    `unsent` says for each fragment how many updates were sent since the one of that fragment; `base` is the version
    that was trained on last.
    """

    learnt: Tensor
    fragments: tuple[bytes, ...]
    unsent: tuple[int, ...]
    base: int


class Carry:
    """The carry of one client, and which fragment comes next. Whoever uses it holds the state's mutex."""

    def __init__(self) -> None:
        self._cut = WHOLE
        self._carried: Carried | None = None

    @property
    def carried(self) -> Carried | None:
        """What is carried now; None: nothing."""
        return self._carried

    def take(self, carried: Carried | None) -> None:
        """Go on with this: an update is durable that leaves it, or it comes from before a restart."""
        self._carried = carried

    def start(self, weights: Tensor, cut: Cut) -> Tensor:
        """The weights (flat) to train from, where a version has these: themselves where nothing is carried.

        The next update is of what is trained on them. Forgotten is what was learnt for another model or for one that
        was cut otherwise, what would be too stale as an update, and what is of a version that is still to come: that
        was another run's.
        """
        if self._carried is not None and (why := _why_useless(self._carried, cut)) is not None:
            logger.warning("what was learnt and not sent yet is dropped: %s", why)
            self._carried = None
        self._cut = cut
        if self._carried is None:
            return weights
        start = weights.clone()
        start[: self._carried.learnt.numel()].add_(self._carried.learnt)
        return start

    def turn(self) -> Fragment | None:
        """The fragment to send of what was trained since `start`; None: all."""
        cut = self._cut
        if len(cut.fragments) < 2:
            return None
        places = [place for place, fragment in enumerate(cut.fragments) if fragment.range == cut.moved]
        return cut.fragments[next_fragment(places[0] if places else None, self._unsent())]

    def add_to(self, delta: Tensor) -> None:
        """Add what is carried to what a training has added (flat, the parameters), in place."""
        if self._carried is not None:
            delta.add_(self._carried.learnt)

    def after(self, fragment: Fragment, delta: Tensor, base: int) -> Carried:
        """What is carried, in memory of its own, once this fragment is sent of a `delta` on version `base`."""
        learnt = delta.clone()
        learnt[fragment.begin : fragment.begin + fragment.parameters].zero_()
        unsent = (
            0 if other is fragment else count + 1
            for other, count in zip(self._cut.fragments, self._unsent(), strict=True)
        )
        return Carried(learnt, _digests(self._cut), tuple(unsent), base)

    def _unsent(self) -> Sequence[int]:
        return [0] * len(self._cut.fragments) if self._carried is None else self._carried.unsent


def _digests(cut: Cut) -> tuple[bytes, ...]:
    return tuple(fragment.digest for fragment in cut.fragments)


def _why_useless(carried: Carried, cut: Cut) -> str | None:
    if carried.fragments != _digests(cut):
        return f"it is of {len(carried.fragments)} fragments that the federation's model does not have"
    if carried.base < cut.oldest:
        return f"it was learnt on version {carried.base}, and an update may be of version {cut.oldest} at the oldest"
    if cut.number is not None and carried.base > cut.number:
        return f"it was learnt on version {carried.base}, and this federation is at version {cut.number}"
    return None
