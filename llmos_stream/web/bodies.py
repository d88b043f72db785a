"""Bodies of requests: each is read whole before anything is parsed, within bounds of its own and of all together."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos_stream.web.guards import Denied, shown_plainly

_STALL_SECONDS = 10.0


_NO_ROOM = Denied(503, "too many bodies of requests are under way; ask again in a moment")


@dataclass(eq=False, slots=True)
class _Body:
    """A body as far as it has come."""

    patience: asyncio.Timeout
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    broken_off: bool = False


class _Held:
    """The bodies that are held, of at most `max_bytes` together (None: any number).

    Where there is no room for more of a body, that one is broken off which has waited longest for more of itself. So
    those that stall shut nobody out.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._coming: dict[_Body, None] = {}  # not complete, the longest without news first
        self._bytes = 0

    def add(self, body: _Body, part: bytes) -> bool:
        """Hold more of a body; False where there is no room."""
        body.parts.append(part)
        body.size += len(part)
        self._bytes += len(part)
        self._coming.pop(body, None)
        while self._max_bytes is not None and self._bytes > self._max_bytes:
            if not self._coming:
                return False
            oldest = next(iter(self._coming))
            oldest.broken_off = True
            oldest.patience.reschedule(0)
            self.drop(oldest)
        self._coming[body] = None
        return True

    def complete(self, body: _Body) -> bytes:
        """Return the whole body, which cannot be broken off any more."""
        self._coming.pop(body, None)
        whole = b"".join(body.parts)
        body.parts.clear()
        return whole

    def drop(self, body: _Body) -> None:
        self._coming.pop(body, None)
        self._bytes -= body.size
        body.size = 0
        body.parts.clear()


class BodyLimit:
    """ASGI middleware that answers 413 above a size, 408 where a body stalls, and 503 where there is no room.

    Args:
        app: Is asked once the body is there.
        max_bytes: Most bytes of one body.
        larger: Paths whose bodies may have more bytes than that.
        held_bytes: Most bytes of all bodies that are read or being answered at a time. None: any number.
        stall_seconds: How long the next part of a body may take.
        shape: Makes the body of an answer that says why.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        larger: Mapping[str, int] | None = None,
        held_bytes: int | None = None,
        stall_seconds: float = _STALL_SECONDS,
        shape: Callable[[Denied], Any] = shown_plainly,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._larger = larger or {}
        self._held = _Held(held_bytes)
        self._stall_seconds = stall_seconds
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(asyncio.timeout(self._stall_seconds))
        try:
            fault = await self._read(body, scope, receive)
            if isinstance(fault, Denied):
                answer = JSONResponse(self._shape(fault), fault.status)
                answer.headers["connection"] = "close"  # the rest of the body is not read
                if fault.status == _NO_ROOM.status:
                    answer.headers["retry-after"] = "1"
                await answer(scope, receive, send)
                return
            if not fault:
                return  # the client left before the end of its body
            whole: list[Message] = [{"type": "http.request", "body": self._held.complete(body), "more_body": False}]

            async def replay() -> Message:
                return whole.pop() if whole else await receive()

            await self._app(scope, replay, send)
        finally:
            self._held.drop(body)

    async def _read(self, body: _Body, scope: Scope, receive: Receive) -> Denied | bool:
        """Return whether the body is there, or why it is refused."""
        most = max(self._max_bytes, self._larger.get(scope["path"], 0))
        too_large = Denied(413, f"the body has more than {most} bytes, the limit")
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            return too_large
        try:
            async with body.patience:
                while True:
                    message = await receive()
                    if body.broken_off:
                        return _NO_ROOM
                    if message["type"] != "http.request":
                        return False
                    part = message.get("body", b"")
                    if body.size + len(part) > most:
                        return too_large
                    if not self._held.add(body, part):
                        return _NO_ROOM
                    if not message.get("more_body", False):
                        return True
                    body.patience.reschedule(asyncio.get_running_loop().time() + self._stall_seconds)
        except TimeoutError:
            return _NO_ROOM if body.broken_off else Denied(408, "the body stopped coming")
