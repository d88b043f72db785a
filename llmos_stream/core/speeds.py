"""How fast the fastest client trains, which clients that adapt their local steps go by (see `training.local_steps`).

Clients say of themselves how fast they are, so that one alone must not make all others do next to nothing: no speed
counts for more than MOST times the median.
"""

import math
from collections import OrderedDict
from statistics import median

MOST = 10.0
_KEPT = 4096


class Speeds:
    """The speed that each client named last (steps a second), the clients heard longest ago first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, float] = OrderedDict()

    def note(self, client_id: str, speed: float | None) -> None:
        """An update of this client was folded; None where it says nothing of its speed."""
        self._known.pop(client_id, None)
        if speed is not None and math.isfinite(speed) and speed > 0:
            self._known[client_id] = speed
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)

    def fastest(self, clients: int) -> float:
        """Of the last so many clients; 0 while none has named its speed."""
        recent = list(self._known.values())[-max(clients, 1) :]
        return min(max(recent), MOST * median(recent)) if recent else 0.0
