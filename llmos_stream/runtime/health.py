"""Whether this process is alive and ready: what a container's health check asks (see `operations`).

A role says what it has and what it has lost by name, without knowing who asks: `met("broker")`, `lost("broker", why)`.
It reaches the process's `Health` through the context, and nobody where there is none.
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
    """Ready while everything in `needs` is met; alive while the event loop comes round within `stuck_seconds`.

    Written to by the event loop's thread, read by any.
    """

    def __init__(
        self, needs: Iterable[str], stuck_seconds: float = 30.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._missing = dict.fromkeys(needs, "not yet")
        self._needs = frozenset(self._missing)
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._beaten = clock()

    @property
    def alive(self) -> bool:
        return self._clock() - self._beaten < self._stuck_seconds

    @property
    def ready(self) -> bool:
        return self.alive and not self._missing

    @property
    def missing(self) -> Mapping[str, str]:
        """What is needed and not there, and why."""
        return dict(self._missing)

    @property
    def conditions(self) -> Mapping[str, bool]:
        """Everything needed, and whether it is there."""
        missing = self._missing
        return {name: name not in missing for name in sorted(self._needs)}

    def met(self, name: str) -> None:
        self._missing = {need: why for need, why in self._missing.items() if need != name}

    def lost(self, name: str, why: str) -> None:
        if name in self._needs:
            self._missing = {**self._missing, name: why}

    async def beat(self) -> None:
        """Show that the event loop comes round, until cancelled; roles in this context report here."""
        while True:
            self._beaten = due = self._clock()
            await asyncio.sleep(_BEAT_SECONDS)
            LOOP_LAG.observe(max(self._clock() - due - _BEAT_SECONDS, 0.0))

    def attach(self) -> None:
        """Let what runs in this context from now on, and the tasks it makes, report here."""
        _current.set(self)


def met(name: str) -> None:
    """This process has `name`."""
    if (health := _current.get()) is not None:
        health.met(name)


def lost(name: str, why: str) -> None:
    """This process has lost `name`. `why` is shown to whoever asks."""
    if (health := _current.get()) is not None:
        health.lost(name, why)
