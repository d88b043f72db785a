"""Writing through broker trouble: again with backoff, through a new producer, until it is acknowledged."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

from llmos_stream.broker import Broker, Producer
from llmos_stream.errors import BrokerError
from llmos_stream.runtime import Shutdown

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 10.0


class Delivery:
    """A producer that is opened when needed and again after a failure. Use as an async context manager.

    After a failure it is unknown whether the records were written, so what is delivered must be told
    apart from its repeat by its reader: updates by their sequence, events by what they are about.
    """

    def __init__(self, broker: Broker, shutdown: Shutdown) -> None:
        self._broker = broker
        self._shutdown = shutdown
        self._opened = AsyncExitStack()
        self._producer: Producer | None = None

    async def deliver(self, write: Callable[[Producer], Awaitable[T]]) -> T:
        """Call `write` until it succeeds. Raises its error when that is not retriable or a stop is asked for."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                if self._producer is None:
                    self._producer = await self._opened.enter_async_context(self._broker.producer())
                return await write(self._producer)
            except BrokerError as error:
                self._producer = None
                await self._opened.aclose()
                if not error.retriable or self._shutdown.requested:
                    raise
                log.warning("not delivered (%s); again in %.1f s", error, delay)
            await self._shutdown.wait(delay)
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()
