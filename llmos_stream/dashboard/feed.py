"""One state for every open page: a snapshot for who comes, then what changed, at most a few times a second.

A page is not queued for. It names the revision it has, and gets the changes since then, or the whole where it is
further behind than the few that are kept: a slow one costs no more memory than a quick one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import orjson

from llmos_stream.dashboard.changes import Json, difference
from llmos_stream.runtime import Shutdown

_SECONDS = 0.4
_IDLE_SECONDS = 1.0
_BEAT_SECONDS = 5.0
_KEPT = 16


class Feed:
    """What pages are told. `make` gives the present state, `changes` a number that rises with it.

    The state is made while somebody looks, and for whoever asks once (`snapshot`).
    """

    def __init__(self, make: Callable[[], Json], changes: Callable[[], int], now_ms: Callable[[], int]) -> None:
        self._make = make
        self._changes = changes
        self._now_ms = now_ms
        self._state: Json = None
        self._revision = 0
        self._kept: deque[bytes] = deque(maxlen=_KEPT)
        self._made_of = -1
        self._made_at = -_SECONDS
        self._snapshot: tuple[int, bytes] = (-1, b"")
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self.viewers = 0

    def refresh(self) -> None:
        """Take the present state, and note how it differs from the one before; at most a few times a second."""
        if monotonic() - self._made_at < _SECONDS / 2:
            return
        self._made_at, self._made_of = monotonic(), self._changes()
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
        """All of it as JSON, as new as its last refresh."""
        if self._snapshot[0] != self._revision:
            self._snapshot = (self._revision, orjson.dumps(self._state))
        return self._snapshot[1]

    async def run(self, shutdown: Shutdown) -> None:
        """Keep the state new until a stop is asked for; then pages are let go."""
        waited = 0.0
        while not await shutdown.wait(_SECONDS):
            waited += _SECONDS
            # Silence is seen without any change: who is late, and that nothing is heard.
            if self.viewers and (self._changes() != self._made_of or waited >= _IDLE_SECONDS):
                waited = 0.0
                self.refresh()
        self.close()

    def close(self) -> None:
        """Let all pages go."""
        self._over.set()
        self._news.set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count one more viewer meanwhile."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def messages(self) -> AsyncIterator[bytes]:
        """Server-sent events for one page, each made when the one before has been taken, until the feed is over."""
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
        # JSON by orjson has no line breaks, so one line of data is all of it.
        return b'event: %b\ndata: {"now_ms":%d,"data":%b}\n\n' % (name.encode(), self._now_ms(), data)
