"""What a client has learnt in the fragments of a model that it has not sent yet.

A client trains the whole model and sends one fragment of what it has learnt (see `core.fragments`). The rest is
carried: the next training begins with the newest version and what is carried on top, and what that training adds comes
to it. So a fragment is learnt in as many trainings as there are fragments, and what it sends is always the difference
to the version that it names as its base.

With w the weights of the version trained on, c the carry and d what the training adds, the client trains from w + c,
sends the fragment p of c + d, and goes on with c + d, which is 0 in p. A restart forgets the carry: it is training that
is done again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from llmos_stream.core.fragments import next_fragment
from llmos_stream.types import Fragment


class Cut(NamedTuple):
    """How a version's model is cut, and which of the fragments that version has moved. None: it moves as a whole."""

    fragments: Sequence[Fragment] = ()
    moved: tuple[int, int] | None = None


WHOLE = Cut()


class Carry:
    """The carry of one client, and which fragment comes next. Whoever uses it holds the state's mutex."""

    def __init__(self) -> None:
        self._cut = WHOLE
        self._learnt: Tensor | None = None
        self._unsent: list[int] = []

    def start(self, weights: Tensor, cut: Cut) -> Tensor:
        """The weights (flat) to train from, where a version has these: themselves where nothing is carried.

        The next update is of what is trained on them. What was learnt for a model that was cut otherwise is forgotten.
        """
        if [fragment.range for fragment in cut.fragments] != [fragment.range for fragment in self._cut.fragments]:
            self._learnt, self._unsent = None, [0] * len(cut.fragments)
        self._cut = cut
        if self._learnt is None:
            return weights
        start = weights.clone()
        start[: self._learnt.numel()].add_(self._learnt)
        return start

    def turn(self) -> Fragment | None:
        """The fragment to send of what was trained since `start`; None: all."""
        cut = self._cut
        if len(cut.fragments) < 2:
            return None
        places = [place for place, fragment in enumerate(cut.fragments) if fragment.range == cut.moved]
        return cut.fragments[next_fragment(places[0] if places else None, self._unsent)]

    def add_to(self, delta: Tensor) -> None:
        """Add what is carried to what a training has added (flat, the parameters), in place."""
        if self._learnt is not None:
            delta.add_(self._learnt)

    def without(self, delta: Tensor, elements: tuple[int, int]) -> Tensor:
        """What is left to carry once these elements are sent, in memory of its own."""
        kept = delta.clone()
        kept[slice(*elements)].zero_()
        return kept

    def sent(self, fragment: Fragment, kept: Tensor) -> None:
        """An update of this fragment is durable, and `kept` is not in it."""
        self._learnt = kept
        self._unsent = [
            0 if other is fragment else count + 1
            for other, count in zip(self._cut.fragments, self._unsent, strict=True)
        ]
