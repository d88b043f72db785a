"""Writing through broker trouble: again with backoff, through a new producer, until it is acknowledged."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from llmos_stream.broker import Broker, Producer
from llmos_stream.errors import BrokerError, BrokerUnavailable
from llmos_stream.runtime import Shutdown
from llmos_stream.runtime.retry import keep_trying, until_stop


class RetryingProducer:
    """A producer that is opened when needed and again after a failure. Use as an async context manager.

    After a failure it is unknown whether the records were written, so what is delivered must be told
    apart from its repeat by its reader: updates by their sequence, events by what they are about.
    """

    def __init__(self, broker: Broker, shutdown: Shutdown, longest_pause_seconds: float = 10.0) -> None:
        self._longest_pause_seconds = longest_pause_seconds
        self._broker = broker
        self._shutdown = shutdown
        self._opened = AsyncExitStack()
        self._producer: Producer | None = None

    async def deliver(self, write: Callable[[Producer], Awaitable[object]]) -> None:
        """Call `write` until it succeeds.

        Raises its error when that is not retriable, BrokerUnavailable when a stop comes before it has succeeded.
        """

        async def attempt() -> bool:
            try:
                if self._producer is None:
                    self._producer = await self._opened.enter_async_context(self._broker.producer())
                await write(self._producer)
            except BrokerError:
                self._producer = None
                await self._opened.aclose()
                raise
            return True

        trying = keep_trying(attempt, self._shutdown, "sending again", self._longest_pause_seconds)
        if not await until_stop(trying, self._shutdown):
            raise BrokerUnavailable("a stop was asked for before the broker acknowledged what was sent")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()
