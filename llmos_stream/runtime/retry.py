"""Retries: the same work again after broker trouble, with growing pauses, and a log line each time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from llmos_stream.errors import BrokerError, BrokerUnavailable, LlmosError
from llmos_stream.runtime.clock import SYSTEM_CLOCK, Clock
from llmos_stream.runtime.health import BROKER, lost, met
from llmos_stream.runtime.shutdown import Shutdown
from llmos_stream.runtime.tasks import run_while
from llmos_stream.telemetry.process_metrics import RETRIES

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 10.0
GRACE_SECONDS = 3.0


async def keep_trying(
    work: Callable[[], Awaitable[T]],
    shutdown: Shutdown,
    what: str,
    longest_seconds: float = _LAST_PAUSE_SECONDS,
    *,
    trouble: type[LlmosError] = BrokerError,
    need: str = BROKER,
    clock: Clock = SYSTEM_CLOCK,
) -> T | None:
    """Call `work` until it returns.

    Args:
        work: Called anew for each attempt.
        shutdown: Ends the attempts.
        what: What comes next, for the log, as in "starting again from the log".
        longest_seconds: Pauses double up to this.
        trouble: Which errors are retried, if their `retriable` says so. Others are raised at once.
        need: What the process lacks meanwhile (see `runtime.health`).
        clock: What the pauses are taken from.

    Returns:
        What `work` returned, or None where a stop was asked for while it failed.
    """
    pause = min(_FIRST_PAUSE_SECONDS, longest_seconds)
    while True:
        begun = clock.monotonic()
        try:
            done = await work()
        except trouble as error:
            if not error.retriable:
                raise
            if shutdown.requested:
                return None
            if clock.monotonic() - begun > 2 * _LAST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS  # it worked for a while: this is another trouble
            lost(need, str(error))
            RETRIES.labels(need).inc()
            logger.error("%s; %s in %.1f s", error, what, pause)
        else:
            met(need)
            return done
        if await shutdown.wait(pause, clock):
            return None
        pause = min(2 * pause, longest_seconds)


async def until_stop(work: Coroutine[Any, Any, T], shutdown: Shutdown, grace_seconds: float = GRACE_SECONDS) -> T:
    """Await a request to the broker; after a stop was asked for, at most `grace_seconds` more.

    Raises:
        BrokerUnavailable: The time is over. A broker that is gone holds no process up.
    """
    return await run_while(work, _give_up(shutdown, grace_seconds))


async def _give_up(shutdown: Shutdown, seconds: float) -> None:
    await shutdown.wait()
    await asyncio.sleep(seconds)
    raise BrokerUnavailable(f"not done in the {seconds:g} s that a stop leaves")
