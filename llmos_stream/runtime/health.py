"""Whether this process is alive and ready, for a container's health check (see `web.health_endpoints`).

A role reports by name what it has and what it lost: `met("broker")`, `lost("broker", why)`. The report goes to the
`Health` of the context, if there is one.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from time import monotonic

from llmos_stream.telemetry.process_metrics import LOOP_LAG

BROKER = "broker"
MODEL = "model"

_BEAT_SECONDS = 0.5
_current: ContextVar["Health | None"] = ContextVar("health", default=None)


class Health:
    """Ready while everything in `needs` is met; alive while the event loop turns at least once in `stuck_seconds`.

    The event loop's thread writes to it, any thread reads it.
    """

    def __init__(
        self, needs: Iterable[str], stuck_seconds: float = 30.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._missing = dict.fromkeys(needs, "not yet")
        self._needs = frozenset(self._missing)
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._last_beat = clock()

    @property
    def alive(self) -> bool:
        return self._clock() - self._last_beat < self._stuck_seconds

    @property
    def ready(self) -> bool:
        return self.alive and not self._missing

    @property
    def missing(self) -> Mapping[str, str]:
        return dict(self._missing)

    @property
    def conditions(self) -> Mapping[str, bool]:
        missing = self._missing
        return {name: name not in missing for name in sorted(self._needs)}

    def met(self, name: str) -> None:
        self._missing = {need: why for need, why in self._missing.items() if need != name}

    def lost(self, name: str, why: str) -> None:
        if name in self._needs:
            self._missing = {**self._missing, name: why}

    async def beat(self) -> None:
        """Note each half second that the event loop turns, and how late, until cancelled."""
        while True:
            self._last_beat = due = self._clock()
            await asyncio.sleep(_BEAT_SECONDS)
            LOOP_LAG.observe(max(self._clock() - due - _BEAT_SECONDS, 0.0))

    def attach(self) -> None:
        """Let this context, and the tasks made in it from now on, report here."""
        _current.set(self)


def met(name: str) -> None:
    """Report that this process has `name`."""
    if (health := _current.get()) is not None:
        health.met(name)


def lost(name: str, why: str) -> None:
    """Report that this process lost `name`. `/ready` shows `why`."""
    if (health := _current.get()) is not None:
        health.lost(name, why)
