"""How long a connection may take: to bring a request's head, its body, and to take its answer.

uvicorn has a time limit for what is idle between two requests only. Without others, whoever opens connections and
never says the whole of a request, or never reads an answer, uses up the process's file descriptors.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 1024  # each may hold a body


def _room() -> int:
    """As many connections as leave half of this process's file descriptors to the rest of it."""
    with suppress(ImportError):  # not on Windows
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit  # noqa: PLC0415

        soft, _ = getrlimit(RLIMIT_NOFILE)
        if soft != RLIM_INFINITY:
            return min(_MOST_CONNECTIONS, soft // 2)
    return _MOST_CONNECTIONS


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, and a bound.

    A request's line and headers are there after `head`, its body `body` later. `taking` after some of an answer lay
    unsent, less of it does. Of more than `connections` at a time the oldest that has not brought its request goes;
    where nearly all have, further ones are told to come again (503).
    """

    head: float = 10.0
    body: float = 60.0  # 8 MiB, the most that is taken unless settings say otherwise, over 1.2 Mbit/s
    taking: float = 30.0
    connections: int = field(default_factory=_room)


class Deadlines(asyncio.Protocol):
    """Goes before one of uvicorn's HTTP protocols, whose attributes it reads: see `patient`."""

    patience: Patience
    owing: dict["Deadlines", None]
    """Of all connections of a server those that have not brought what they owe, the oldest first."""

    cycle: Any  # the newest request, once its head is there
    flow: Any
    connections: set[Any]
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()
        self._owes: object = None
        self._late: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._look = self._loop.call_later(self.patience.taking, self._check_taking)
        self._note()
        if len(self.connections) > self.patience.connections and len(self.owing) > 1:
            oldest = next(iter(self.owing))
            oldest._settle()  # it leaves `connections` a little later, and others may have come by then
            logger.debug("there are more than %d connections", self.patience.connections)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Called by uvicorn; what came behind the request may be a further one."""
        super().on_response_complete()  # type: ignore[misc]  # uvicorn's
        if not self.cycle.response_complete:
            self._note()

    def resume_writing(self) -> None:
        self._unsent = 0  # much was taken, though as much may have been written since
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        self._settle()
        super().connection_lost(exc)

    def _note(self) -> None:
        """Give what is owed its time, once."""
        owes, seconds = self._now_owed()
        if owes is self._owes and self._late is not None:
            return
        self._settle()
        if owes is not None and not self.transport.is_closing():
            self._owes = owes
            self._late = self._loop.call_later(seconds, self._too_late)
            self.owing[self] = None

    def _now_owed(self) -> tuple[object, float]:
        """Something that stands for what is missing of the request, and how long that may take; None if nothing is."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return self, self.patience.head
        return (cycle if cycle.more_body else None), self.patience.body

    def _settle(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._owes = self._late = None
        self.owing.pop(self, None)

    def _too_late(self) -> None:
        self._late = None
        if self.flow.read_paused:
            self._note()  # it is this side that does not read on
            return
        self._settle()
        logger.debug("broke off a connection that did not bring its request in time")
        self.transport.abort()

    def _check_taking(self) -> None:
        """Also while it closes: what is unsent is still waited for then, for ever."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent > 0:
            logger.debug("broke off a connection that took nothing for %g s", self.patience.taking)
            self.transport.abort()
            return
        self._unsent = unsent
        self._look = self._loop.call_later(self.patience.taking, self._check_taking)


def patient(protocol: type[asyncio.Protocol], patience: Patience) -> type[asyncio.Protocol]:
    """uvicorn's `protocol` with these deadlines, for one server."""
    made = type(f"Patient{protocol.__name__}", (Deadlines, protocol), {"patience": patience, "owing": {}})
    return cast("type[asyncio.Protocol]", made)
