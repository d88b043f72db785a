"""An update that is sent while its client trains on: through a producer of its own, and nothing else beside it.

It touches neither the state nor what is read: `Client.land` settles it, so that a kill, or a connection that was lost,
finds an update that was not acknowledged, as if it had been sent in turn.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from llmos_stream.broker import Producer
from llmos_stream.log.federation import Federation
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.roles.client.state import Unsent
from llmos_stream.runtime.tasks import in_background
from llmos_stream.telemetry.tracing import span


class Flight:
    """One update on its way."""

    def __init__(self, update: Unsent, federation: Federation) -> None:
        self.update = update
        self.arrived_at: float | None = None
        """When the log acknowledged it, or it was refused; None: it has not yet."""
        self._federation = federation
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None]

    async def begin(self, write: Callable[[Producer], Awaitable[object]]) -> None:
        """Call `write` beside the caller until it succeeds, as `RetryingProducer.deliver` does."""
        self._task = await self._stack.enter_async_context(in_background(self._deliver(write)))

    async def wait(self, seconds: float) -> None:
        """Wait for its end, so long at most."""
        await asyncio.wait([self._task], timeout=seconds)

    async def arrival(self) -> None:
        """Wait until it is acknowledged. Raises what made that impossible."""
        await self._task

    async def end(self) -> None:
        """Send no more of it."""
        await self._stack.aclose()

    async def _deliver(self, write: Callable[[Producer], Awaitable[object]]) -> None:
        try:
            with span("client.publish", update_attributes(self.update.head)):
                async with self._federation.producer() as producer:
                    await producer.deliver(write)
        finally:
            self.arrived_at = self._federation.clock.monotonic()
