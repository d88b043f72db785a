"""Which version answers a request. Pure: the caller draws the random number.

The pinned version serves, else the one promoted in `<f>.control`, else the newest, each only while it is loaded. A
share of the requests, the canary, goes to the newest instead.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum, unique


@unique
class Why(StrEnum):
    """Why a version answers."""

    ASKED = "asked"  # the request names it
    PINNED = "pinned"
    PROMOTED = "promoted"
    NEWEST = "newest"
    CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Route:
    """What an operator set in this process. `canary` is a share in [0, 1]."""

    pin: int | None = None
    canary: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A version and why it answers."""

    version: int
    why: Why


def serving(loaded: Collection[int], promoted: int | None, route: Route) -> Choice | None:
    """Choose the version that answers all but the canary's share; None where none is loaded."""
    if not loaded:
        return None
    if route.pin is not None and route.pin in loaded:
        return Choice(route.pin, Why.PINNED)
    if promoted is not None and promoted in loaded:
        return Choice(promoted, Why.PROMOTED)
    return Choice(max(loaded), Why.NEWEST)


def choose(loaded: Collection[int], promoted: int | None, route: Route, draw: float) -> Choice | None:
    """Choose the version that answers one request, by a `draw` from [0, 1); None where none is loaded."""
    stable = serving(loaded, promoted, route)
    if stable is not None and stable.version != max(loaded) and draw < route.canary:
        return Choice(max(loaded), Why.CANARY)
    return stable
