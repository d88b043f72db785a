"""Server-sent events over ASGI to a viewer that may be slow, or gone."""

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.runtime import run_while

logger = logging.getLogger(__name__)

_STALL_SECONDS = 20.0
_HEADERS = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))


class _Gone(Exception):
    """The viewer left."""


class EventResponse(Response):
    """One viewer's stream. It ends where the viewer reads nothing for `stall_seconds`; the page connects again."""

    def __init__(self, states: StateStream, stall_seconds: float = _STALL_SECONDS) -> None:
        super().__init__()
        self._states = states
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*_HEADERS, *((name, value) for name, value in self.raw_headers if name != b"content-length")]
        with self._states.watched():
            try:
                await run_while(self._send(send, headers), _until_gone(receive))
            except _Gone:
                logger.debug("a viewer left")

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
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _Gone
