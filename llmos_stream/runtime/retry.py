"""Going on through broker trouble: the same work again, with growing pauses, saying why each time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

from llmos_stream.errors import BrokerError, BrokerUnavailable, LlmosError
from llmos_stream.runtime import BROKER, Shutdown, lost, met, run_while
from llmos_stream.telemetry.process_metrics import RETRIES

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUIET_SECONDS = 10.0
"""Who has read nothing for this long asks the broker whether it is there."""
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 10.0
_FAREWELL_SECONDS = 3.0


async def keep_trying(
    work: Callable[[], Awaitable[T]],
    shutdown: Shutdown,
    what: str,
    longest_seconds: float = _LAST_PAUSE_SECONDS,
    *,
    trouble: type[LlmosError] = BrokerError,
    need: str = BROKER,
) -> T | None:
    """Call `work` until it returns; None when a stop is asked for while it fails.

    Raises at once what a repeat would not mend (see `LlmosError.retriable`). `what` says in the log what
    comes next, as in "starting again from the log". Pauses grow up to `longest_seconds`. `trouble` is what is
    looked at, `need` what is lost meanwhile (see `runtime.health`).
    """
    pause = min(_FIRST_PAUSE_SECONDS, longest_seconds)
    while True:
        begun = monotonic()
        try:
            done = await work()
        except trouble as error:
            if not error.retriable:
                raise
            if shutdown.requested:
                return None
            if monotonic() - begun > 2 * _LAST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS  # it worked for a while: this is another trouble
            lost(need, str(error))
            RETRIES.labels(need).inc()
            logger.error("%s; %s in %.1f s", error, what, pause)
        else:
            met(need)
            return done
        if await shutdown.wait(pause):
            return None
        pause = min(2 * pause, longest_seconds)


async def until_stop(
    work: Coroutine[Any, Any, T], shutdown: Shutdown, farewell_seconds: float = _FAREWELL_SECONDS
) -> T:
    """Await what the broker is asked for; once a stop is asked for too, for a few more seconds only.

    Raises BrokerUnavailable then: a broker that is gone holds nobody up.
    """
    return await run_while(work, _give_up(shutdown, farewell_seconds))


async def _give_up(shutdown: Shutdown, seconds: float) -> None:
    await shutdown.wait()
    await asyncio.sleep(seconds)
    raise BrokerUnavailable(f"not done in the {seconds:g} s that a stop leaves")
