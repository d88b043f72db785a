"""The fragments of a model: which one an update carries, and which one a client sends next."""

from collections.abc import Sequence

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Fragment


def fragment_of(fragments: Sequence[Fragment], elements: tuple[int, int] | None) -> Fragment:
    """The fragment that these elements are; None: all, of a model that is not cut and has one fragment alone.

    Raises:
        Rejected: (WRONG_LAYOUT) There is none.
    """
    if len(fragments) == 1 and elements is None:
        return fragments[0]
    for fragment in fragments:
        if len(fragments) > 1 and fragment.range == elements:
            return fragment
    raise moves_nowhere(elements, len(fragments))


def moves_nowhere(elements: tuple[int, int] | None, count: int) -> Rejected:
    """Why an update of these elements is refused, where the model has so many fragments."""
    what = "the whole model" if elements is None else "elements {} to {}".format(*elements)
    cut = "is not cut into fragments" if count == 1 else f"is cut into {count} others"
    return Rejected(Reason.WRONG_LAYOUT, f"an update of {what}, where the model {cut}")


def next_fragment(moved: int | None, unsent: Sequence[int]) -> int:
    """Which fragment a client sends of the training that has just ended, by its place in the flat vector.

    The fragments take turns: the one comes next that follows the one which the version has moved that the client
    trained on. So all who train on one version send the same fragment, and the next version need not wait for those who
    train on another. A client whose rhythm would leave a fragment out sends that one after twice as many updates as
    there are fragments.

    Args:
        moved: The fragment that the version has moved; None where it has moved none, as the first.
        unsent: For each fragment, how many updates this client has sent since the one of that fragment.
    """
    longest = max(range(len(unsent)), key=unsent.__getitem__)
    if unsent[longest] >= 2 * len(unsent):
        return longest
    return 0 if moved is None else (moved + 1) % len(unsent)
