"""What the faces of this package have in common: they are one client of a federation each."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Self

from llmos_stream import __version__
from llmos_stream.config import Settings
from llmos_stream.federated.beside import Beside
from llmos_stream.federated.membership import Membership
from llmos_stream.federated.update import Joined, Shared, Update
from llmos_stream.roles.aggregator import Initial
from llmos_stream.telemetry.tracing import Tracer, open_tracer, tracing_to


class Member:
    """One client of a federation, from its construction until `close`. Not for two threads at once."""

    def __init__(
        self, settings: Settings, shared: Shared, initial: Callable[[], Initial], beside: Beside | None = None
    ) -> None:
        """`initial` gives version 0 where the federation is embedded in this process."""
        facts = {"role": "client", "federation": settings.federation.name, "version": __version__}
        tracer = open_tracer(settings.tracing, facts)
        try:
            with tracing_to(tracer):
                self._membership = Membership(settings, shared.layout, initial, type(self).__name__, beside=beside)
        except BaseException:
            _close_tracer(tracer)
            raise
        self._joined = Joined(self._membership, shared, tracer)
        self._finalizer = weakref.finalize(self, _leave, self._membership, tracer)

    @property
    def finished(self) -> str | None:
        """Why the federation's run has ended; None while it goes on."""
        return self._membership.finished

    @property
    def outcomes(self) -> dict[str, int | str]:
        """How many of this client's updates were `counted`, `dropped` (`why`: the last reason), or still `waiting`."""
        return self._membership.outcomes()

    def close(self) -> None:
        """Leave the federation and release everything. May be called more than once."""
        if self._joined.under_way is not None:
            self._joined.under_way.skip()
        self._finalizer()

    async def aclose(self) -> None:
        """As `close`, for callers in an event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Updates:
    """One update after the other, until the run has ended. Each is sent when the loop goes on to the next."""

    def __init__(self, make: Callable[[], Update]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Update]:
        while True:
            with self._make() as update:
                if update.finished:
                    return
                yield update

    async def __aiter__(self) -> AsyncIterator[Update]:
        while True:
            async with self._make() as update:
                if update.finished:
                    return
                yield update


def _leave(membership: Membership, tracer: Tracer | None) -> None:
    try:
        membership.close()
    finally:
        _close_tracer(tracer)


def _close_tracer(tracer: Tracer | None) -> None:
    if tracer is not None:
        tracer.close()
