"""One state for every open page: first a snapshot, then the changes, at most a few times a second.

No page has a queue. The stream knows the revision that a page has, and sends the changes since then, or the whole state
where too many of them are gone. So a slow page costs no more memory than a quick one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from time import monotonic

import orjson

from llmos_stream.dashboard.changes import Json, difference
from llmos_stream.dashboard.viewers import Viewers
from llmos_stream.runtime import Shutdown

_SECONDS = 0.4
_IDLE_SECONDS = 1.0
_BEAT_SECONDS = 5.0
_KEPT = 16


class StateStream:
    """Sends the state to the pages.

    Args:
        make: Returns the present state. It is called while a page is open, and for `refresh`.
        changes: Returns a number that rises with each change.
        now_ms: Returns the time that each message carries.
        most_viewers: How many pages are sent states at a time.
    """

    def __init__(
        self,
        make: Callable[[], Json],
        changes: Callable[[], int],
        now_ms: Callable[[], int],
        most_viewers: int = 100,
    ) -> None:
        self._make = make
        self._changes = changes
        self._now_ms = now_ms
        self._state: Json = None
        self._revision = 0
        self._kept: deque[bytes] = deque(maxlen=_KEPT)
        self._made_from = -1
        self._made_at = -_SECONDS
        self._snapshot: tuple[int, bytes] = (-1, b"")
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self.viewers = Viewers(most_viewers)

    def refresh(self) -> None:
        """Make the state anew and note its difference from the last one; at most a few times a second."""
        if monotonic() - self._made_at < _SECONDS / 2:
            return
        self._made_at, self._made_from = monotonic(), self._changes()
        new = self._make()
        change = difference(self._state, new)
        if change is None:
            return
        self._state = new
        self._revision += 1
        self._kept.append(orjson.dumps(change))
        self._news.set()
        self._news = asyncio.Event()

    def snapshot(self) -> bytes:
        """Return the state of the last refresh as JSON."""
        if self._snapshot[0] != self._revision:
            self._snapshot = (self._revision, orjson.dumps(self._state))
        return self._snapshot[1]

    async def run(self, shutdown: Shutdown) -> None:
        """Refresh the state until a stop is asked for, then end all streams."""
        waited = 0.0
        while not await shutdown.wait(_SECONDS):
            waited += _SECONDS
            # Silence changes the page without any event: it shows who is late.
            if len(self.viewers) and (self._changes() != self._made_from or waited >= _IDLE_SECONDS):
                waited = 0.0
                self.refresh()
        self.close()

    def close(self) -> None:
        self._over.set()
        self._news.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield server-sent events for one page until `close`, each made when the one before was taken."""
        self.refresh()
        has = self._revision
        yield self._event("snapshot", self.snapshot())
        while not self._over.is_set():
            news = self._news
            if has == self._revision:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_BEAT_SECONDS):
                        await news.wait()
            missed = self._revision - has
            has = self._revision
            if self._over.is_set():
                return
            if missed > len(self._kept):
                yield self._event("snapshot", self.snapshot())
            elif missed:
                yield self._event("changes", b"[" + b",".join([*self._kept][-missed:]) + b"]")
            else:
                yield self._event("beat", b"null")

    def _event(self, name: str, data: bytes) -> bytes:
        # orjson writes no line breaks, so one line of data holds it all.
        return b'event: %b\ndata: {"now_ms":%d,"data":%b}\n\n' % (name.encode(), self._now_ms(), data)
