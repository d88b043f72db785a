"""Which sequence a client's next update takes: one that the aggregator takes for no repeat, whoever sends beside it.

The aggregator keeps a window for each client (see `dedup`), and the control topic says which. A client goes on from its
own state; no clock has a part in it. Where the window shows that its next number is spent (its disk was lost, or put
back from a backup, or another process sends under its name), it goes on half a window above the highest: what the other
has on its way still counts, and so does what it sends on.
"""

from llmos_stream.core.dedup import WINDOW, SequenceWindow
from llmos_stream.errors import Reason, Rejected

APART = WINDOW // 2
"""How far above the highest sequence a client goes on that does not go on from its own."""
CHANCES = APART // 2
"""So many places there are to go on at, so that two clients that do so at once seldom meet."""
_NEAR = WINDOW - WINDOW // 8
HIGHEST_FIRST = 1 << 48
"""No client begins above this: it counts its updates, or the milliseconds of a clock that older releases began with."""
FURTHEST_AHEAD = 1 << 32
"""So far above the last that was folded a sequence may be: many more than a client could have refused in between."""


def check_sequence(sequence: int, window: SequenceWindow | None) -> None:
    """Refuse a sequence so high that hardly any are left above it: whoever sends under the name could not go on.

    Raises Rejected: SEQUENCE_AHEAD.
    """
    most = HIGHEST_FIRST if window is None else window.highest + FURTHEST_AHEAD
    if sequence > most:
        raise Rejected(Reason.SEQUENCE_AHEAD, f"sequence {sequence}, where at most {most} can come")


def next_sequence(wanted: int, window: SequenceWindow | None, chance: int, *, apart: bool = False) -> int:
    """The sequence to take where `wanted` is the next by the client's own state.

    Args:
        wanted: What comes after the last that this client took.
        window: What the aggregator has folded under its name, as far as is known.
        chance: A random number below `CHANCES`.
        apart: Whether the client knows that `wanted` may be another's: its state is new, or it met another process.
    """
    if window is None:  # what is remembered of nobody leaves all numbers free
        return wanted if wanted <= HIGHEST_FIRST else chance
    is_free = wanted > window.highest or (not window.seen(wanted) and window.highest - wanted < _NEAR)
    return wanted if is_free and not apart else max(wanted, window.highest + APART + chance)
