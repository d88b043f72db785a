"""Who takes part now, and of how many updates the next version is therefore made, where no setting says so.

A client takes part from its first folded update until it has been silent for LATE times what it usually needs from one
to the next. Where more than MOST take part, a version is made of MOST updates, whoever is first. Where fewer do, one is
made of the update that opens it and of one from each other client that is expected soon:

    needs(c)       from when it could begin on its last update, to when that came
    expected(c)    when it could begin on its present version, plus needs(c)
    soon           expected(c) <= now + max(needs of the client that opens it, SOON)
    waited for     until expected(c) + max(needs(c) / 2, SOON)

so that clients of one speed come to work in step, nobody waits for longer than it trains (nor, in any case, than
`aggregation.deadline_seconds`) for one that is slower, and one that has left is waited for once. The number that a
version was made at goes into the rule that it records. Times are those of any clock that does not go back; nothing of
this outlives the process: the next one begins with the clients of the newest version.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

MOST = 4
"""At how many updates a version is made at most."""
SOON = 0.5
"""Seconds that clients may be apart, however quick they are."""
LATE = 3.0
CLIENTS_KEPT = 1 << 16
_FIRST_SECONDS = 20.0
"""How long a client is taken to need that was heard only once."""
_SHORTEST_SECONDS = 2.0
_VERSIONS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Participant:
    """When an update of a client came last, and when it could begin on the next; None: as soon as a version comes.

    needs: how long it takes for one; cycle: from one to the next; None where that is not known.
    """

    heard_at: float
    began_at: float | None
    needs: float | None
    cycle: float | None

    def is_gone(self, now: float) -> bool:
        """Whether it has been silent for so long that it takes part no longer."""
        usual = _FIRST_SECONDS if self.cycle is None else max(self.cycle, _SHORTEST_SECONDS)
        return now - self.heard_at > LATE * usual


class Expected(NamedTuple):
    """Of how many updates a version is to be made, and for how long they are waited for; None: as the settings say."""

    updates: int
    seconds: float | None = None


class Participants:
    """The clients that take part, the longest silent first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Participant] = OrderedDict()
        self._waiting: dict[str, None] = {}  # for the version that their update becomes part of
        self._made_at: OrderedDict[int, float] = OrderedDict()

    def resume(self, clients: Iterable[str], version: int, now: float) -> None:
        """Go on with the clients whose updates made the newest `version`."""
        self._known = OrderedDict((client_id, Participant(now, now, None, None)) for client_id in clients)
        self._made_at[version] = now

    def count(self, now: float) -> int:
        """How many take part; the others are forgotten."""
        for client_id in [client_id for client_id, client in self._known.items() if client.is_gone(now)]:
            del self._known[client_id]
        return len(self._known)

    def has(self, client_id: str, now: float) -> bool:
        """Whether this client takes part."""
        client = self._known.get(client_id)
        return client is not None and not client.is_gone(now)

    def expected(self, client_id: str, base_version: int, now: float) -> Expected:
        """What the version shall be that an update of this client on `base_version` would open."""
        there = (known for other, known in reversed(self._known.items()) if other != client_id)
        others = list(islice((known for known in there if not known.is_gone(now)), MOST))
        if len(others) == MOST:
            return Expected(MOST)
        needs, waits = self._needs(client_id, base_version, now), list[float]()
        for other in others:
            its = needs if other.needs is None else other.needs
            if its is None:
                continue
            comes_at = (now if other.began_at is None else other.began_at) + its
            until = comes_at + max(its / 2, SOON)
            if comes_at <= now + max(needs or 0.0, SOON) and now <= until:
                waits.append(until - now)
        return Expected(1 + len(waits), max(waits, default=0.0))

    def folded(self, client_id: str, base_version: int, version: int, now: float) -> None:
        """An update of this client on `base_version` was folded at global `version`."""
        needs = self._needs(client_id, base_version, now)
        before = self._known.pop(client_id, None)
        spans = [needs, None if before is None else now - before.heard_at]
        cycle = max((span for span in spans if span is not None), default=None)
        self._known[client_id] = Participant(now, now if base_version < version else None, needs, cycle)
        self._waiting[client_id] = None
        if len(self._known) > CLIENTS_KEPT:
            self._known.popitem(last=False)

    def made(self, version: int, now: float) -> None:
        """A version was made: who waited for it can begin."""
        for client_id in self._waiting.keys() & self._known.keys():
            if (client := self._known[client_id]).began_at is None:
                self._known[client_id] = replace(client, began_at=now)
        self._waiting.clear()
        self._made_at[version] = now
        if len(self._made_at) > _VERSIONS_KEPT:
            self._made_at.popitem(last=False)

    def rested(self, seconds: float) -> None:
        """Nothing was folded for so long, because the federation was paused."""
        for client_id, client in self._known.items():
            began_at = None if client.began_at is None else client.began_at + seconds
            self._known[client_id] = replace(client, heard_at=client.heard_at + seconds, began_at=began_at)
        self._made_at = OrderedDict((version, at + seconds) for version, at in self._made_at.items())

    def _needs(self, client_id: str, base_version: int, now: float) -> float | None:
        known = self._known.get(client_id)
        began_at = (self._made_at.get(base_version), None if known is None else known.began_at)
        return min((max(now - at, 0.0) for at in began_at if at is not None), default=None)
