"""Server-sent events over ASGI to a viewer that may be slow, or gone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.runtime import run_while

logger = logging.getLogger(__name__)

_STALL_SECONDS = 20.0
_END_SECONDS = 1.0
_LAST: Message = {"type": "http.response.body", "body": b"", "more_body": False}
_HEADERS = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))


class _Gone(Exception):
    """The viewer left, or another one needs the place."""


class EventResponse(Response):
    """One viewer's stream. It ends where the viewer reads nothing for `stall_seconds`; the page connects again."""

    def __init__(self, states: StateStream, address: str | None = None, stall_seconds: float = _STALL_SECONDS) -> None:
        super().__init__()
        self._states = states
        self._address = address
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*_HEADERS, *((name, value) for name, value in self.raw_headers if name != b"content-length")]
        with self._states.viewers.watching(self._address) as ended:
            try:
                await run_while(self._send(send, headers), _until_gone(receive), _until_ended(ended))
            except _Gone:
                logger.debug("a viewer left")
        if ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await send(_LAST)

    async def _send(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        messages: AsyncIterator[bytes] = self._states.messages()
        async for message in messages:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await send({"type": "http.response.body", "body": message, "more_body": True})
            except TimeoutError:
                logger.info("let a viewer go who took nothing for %g s", self._stall_seconds)
                raise _Gone from None
        await send(_LAST)


async def _until_ended(ended: asyncio.Event) -> None:
    await ended.wait()
    raise _Gone


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _Gone
