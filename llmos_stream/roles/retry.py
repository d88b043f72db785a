"""Going on through broker trouble: the same work again, with growing pauses, saying why each time."""

import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from llmos_stream.errors import BrokerError
from llmos_stream.runtime import Shutdown

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 10.0


async def keep_trying(work: Callable[[], Awaitable[T]], shutdown: Shutdown, what: str) -> T | None:
    """Call `work` until it returns; None when a stop is asked for while it fails.

    Raises at once what a repeat would not mend (see `LlmosError.retriable`). `what` says in the log what
    comes next, as in "starting again from the log".
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        begun = monotonic()
        try:
            return await work()
        except BrokerError as error:
            if not error.retriable:
                raise
            if shutdown.requested:
                return None
            if monotonic() - begun > 2 * _LAST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS  # it worked for a while: this is another trouble
            log.error("%s; %s in %.1f s", error, what, pause)
        if await shutdown.wait(pause):
            return None
        pause = min(2 * pause, _LAST_PAUSE_SECONDS)
