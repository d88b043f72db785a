"""Time limits for a connection: until the request's head is there, its body, and while its answer is read.

uvicorn limits only the time between two requests. Without further limits a client that opens connections and never
sends a whole request, or never reads an answer, uses up the process's file descriptors.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024  # each may hold a body


def _max_connections() -> int:
    """Leave half of this process's file descriptors to the rest of it."""
    with suppress(ImportError):  # not on Windows
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit  # noqa: PLC0415

        soft, _ = getrlimit(RLIMIT_NOFILE)
        if soft != RLIM_INFINITY:
            return min(_MAX_CONNECTIONS, soft // 2)
    return _MAX_CONNECTIONS


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one server.

    Attributes:
        head_seconds: Time for a request's line and headers.
        body_seconds: Further time for its body. 8 MiB, the default limit on a body, arrive in it at 1.2 Mbit/s.
        stall_seconds: Time in which the client must read at least some of the answer that waits for it.
        connections: Above this number the oldest connection without a whole request is closed. Where nearly all
            have one, new requests get 503.
    """

    head_seconds: float = 10.0
    body_seconds: float = 60.0
    stall_seconds: float = 30.0
    connections: int = field(default_factory=_max_connections)


class TimedConnection(asyncio.Protocol):
    """Mixin before one of uvicorn's HTTP protocols, whose attributes it reads: see `with_limits`."""

    limits: ConnectionLimits
    incomplete: dict["TimedConnection", None]
    """The server's connections whose request is not complete, the oldest first."""

    # uvicorn's attributes
    cycle: Any  # the newest request, once its head is there
    flow: Any
    connections: set[Any]
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timers; close the oldest incomplete connection where there are too many."""
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()
        self._awaited: object = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._stall_timer = self._loop.call_later(self.limits.stall_seconds, self._check_stall)
        self._update_timer()
        if len(self.connections) > self.limits.connections and len(self.incomplete) > 1:
            oldest = next(iter(self.incomplete))
            oldest._stop_timer()  # it leaves `connections` a little later, and others may have come by then
            logger.debug("there are more than %d connections", self.limits.connections)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def on_response_complete(self) -> None:
        """Start the timer for the next request of the connection; part of it may be there already."""
        super().on_response_complete()  # type: ignore[misc]  # uvicorn's
        if not self.cycle.response_complete:
            self._update_timer()

    def resume_writing(self) -> None:
        """Note progress: the client read much, though the server may have written as much since."""
        self._unsent = 0
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stall_timer.cancel()
        self._stop_timer()
        super().connection_lost(exc)

    def _update_timer(self) -> None:
        """Run one timer for each part of a request that is awaited."""
        awaited, seconds = self._now_awaited()
        if awaited is self._awaited and self._timer is not None:
            return
        self._stop_timer()
        if awaited is not None and not self.transport.is_closing():
            self._awaited = awaited
            self._timer = self._loop.call_later(seconds, self._too_late)
            self.incomplete[self] = None

    def _now_awaited(self) -> tuple[object, float]:
        """An object that stands for the missing part of the request and the time for it; None if it is complete."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return self, self.limits.head_seconds
        return (cycle if cycle.more_body else None), self.limits.body_seconds

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._awaited = self._timer = None
        self.incomplete.pop(self, None)

    def _too_late(self) -> None:
        self._timer = None
        if self.flow.read_paused:
            self._update_timer()  # it is the server that does not read on
            return
        self._stop_timer()
        logger.debug("broke off a connection that did not bring its request in time")
        self.transport.abort()

    def _check_stall(self) -> None:
        """Close the connection if the client read nothing since the last look, also one that is closing already."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent > 0:
            logger.debug("broke off a connection that took nothing for %g s", self.limits.stall_seconds)
            self.transport.abort()
            return
        self._unsent = unsent
        self._stall_timer = self._loop.call_later(self.limits.stall_seconds, self._check_stall)


def with_limits(protocol: type[asyncio.Protocol], limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Return uvicorn's `protocol` with these limits, for one server."""
    made = type(f"Timed{protocol.__name__}", (TimedConnection, protocol), {"limits": limits, "incomplete": {}})
    return cast("type[asyncio.Protocol]", made)
