"""Which version answers a request. Pure: the draw is handed in.

What serves is the version that is pinned, else the one promoted in `<f>.control`, else the newest; each only while it
is held. A share of the requests, the canary, goes to the newest instead.
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
    """What an operator has set here. `canary` is a share in [0, 1]."""

    pin: int | None = None
    canary: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A version and why it answers."""

    version: int
    why: Why


def serving(held: Collection[int], promoted: int | None, route: Route) -> Choice | None:
    """The version that answers all but the canary's share; None where none is held."""
    if not held:
        return None
    if route.pin is not None and route.pin in held:
        return Choice(route.pin, Why.PINNED)
    if promoted is not None and promoted in held:
        return Choice(promoted, Why.PROMOTED)
    return Choice(max(held), Why.NEWEST)


def choose(held: Collection[int], promoted: int | None, route: Route, draw: float) -> Choice | None:
    """The version that answers one request, by a `draw` from [0, 1); None where none is held."""
    stable = serving(held, promoted, route)
    if stable is not None and stable.version != max(held) and draw < route.canary:
        return Choice(max(held), Why.CANARY)
    return stable
