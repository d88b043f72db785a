"""How often a client should send, so that updates arrive no faster than they can be folded.

Papaya (Huba et al. 2022) bounds how many clients train at a time. Here clients come and go as they like and
the server tells them how long to leave between two updates: with `clients` of them, each of whose updates
costs the aggregator `service` seconds (its share of the version included), it is busy for a share
`utilisation` of the time when

    interval = clients * service / utilisation

A backlog is worked off in what is left. Clients that need longer than this to train are not held up at all.
"""

_NEWEST = 0.3
"""Weight of the newest version in the moving average of the service time."""


class Pace:
    """Learns the service time from version to version. `utilisation` is in (0, 1]."""

    def __init__(self, utilisation: float) -> None:
        self._utilisation = utilisation
        self._service: float | None = None

    def observe(self, updates: int, busy_seconds: float) -> None:
        """A version of `updates` contributions took the aggregator this long, waiting for updates left out."""
        if updates <= 0:
            return
        newest = busy_seconds / updates
        self._service = newest if self._service is None else self._service + _NEWEST * (newest - self._service)

    def interval(self, clients: int) -> float:
        """Seconds that each of `clients` should leave from one update to its next; 0 while nothing is known."""
        return 0.0 if self._service is None else clients * self._service / self._utilisation
