"""Weights of the versions that this process has made: whoever reads one of those here needs no copy of its own.

Where a federation is in one process, aggregator, clients and evaluator would else hold the newest version each. A
version is known by the digest of its prelude, which covers those of its payload and of its weights: nobody else's is
taken for one of these.
"""

from weakref import WeakValueDictionary

from torch import Tensor

_MADE: WeakValueDictionary[bytes, Tensor] = WeakValueDictionary()


def remember(digest: bytes, weights: Tensor) -> None:
    """The version whose prelude has this digest has these weights (flat), which nobody writes to from now on.

    They are known here for as long as somebody holds them.
    """
    _MADE[digest] = weights


def made_here(digest: bytes) -> Tensor | None:
    """The weights of the version whose prelude has this digest, to be read only; None where they are not known."""
    return _MADE.get(digest)
