"""A process that runs one role: signals, exit codes, one clear line for an error."""

import asyncio
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from llmos_stream.errors import (
    BrokerUnavailable,
    ConfigError,
    Fenced,
    LlmosError,
    NotFound,
    NotWanted,
    OffsetGone,
    TopicMissing,
)
from llmos_stream.runtime.logs import report_end
from llmos_stream.runtime.shutdown import Shutdown

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """What a process's exit status means."""

    DONE = 0  # the work ended, or a stop was asked for and the drain was clean
    FAILED = 1
    CONFIG = 2  # settings or arguments that make no sense
    UNAVAILABLE = 3  # no broker answered
    FENCED = 4  # a newer aggregator has taken over
    NOT_FOUND = 5  # what was asked for is not there
    NOT_WANTED = 6  # the operator does not want this client to take part
    FORCED = 130  # a second signal cut the drain short
    INTERRUPTED = 130  # Ctrl-C, before the work had ended


def exit_code(error: LlmosError) -> ExitCode:
    """Return the exit status that stands for `error`."""
    match error:
        case ConfigError():
            return ExitCode.CONFIG
        case BrokerUnavailable():
            return ExitCode.UNAVAILABLE
        case Fenced():
            return ExitCode.FENCED
        case NotFound() | TopicMissing() | OffsetGone():
            return ExitCode.NOT_FOUND
        case NotWanted():
            return ExitCode.NOT_WANTED
        case _:
            return ExitCode.FAILED


def run_process(role: Callable[[Shutdown], Awaitable[object]], stop_seconds: float = math.inf) -> ExitCode:
    """Run `role` to its end under signals.

    The first SIGINT or SIGTERM asks it to stop. The second one cancels it, and so does the end of `stop_seconds`.
    """
    # A full collection visits all objects that imports made (200,000 with torch, 0.1 s) and holds the process up
    # meanwhile. None of them ever becomes garbage.
    gc.freeze()
    try:
        asyncio.run(_supervise(role, stop_seconds))
    except asyncio.CancelledError:
        report_end("stopped before everything was drained")
        return ExitCode.FORCED
    except LlmosError as error:
        report_end(f"error: {error}")
        return exit_code(error)
    return ExitCode.DONE


def exit_process(status: int) -> NoReturn:
    """End the process with this exit status.

    After a forced stop it waits for no thread: one may hang in a call to a file system or a store that is gone, and
    the interpreter would wait for it without end.
    """
    if status == ExitCode.FORCED:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


async def _supervise(role: Callable[[Shutdown], Awaitable[object]], stop_seconds: float) -> None:
    shutdown = Shutdown()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    deadlines: list[asyncio.TimerHandle] = []

    def on_signal(name: str) -> None:
        if shutdown.requested and task is not None:
            task.cancel()
        else:
            logger.info("%s: stopping; once more to force", name)
            shutdown.interrupted = name == signal.SIGINT.name
            shutdown.request()
            if task is not None and stop_seconds < math.inf:
                deadlines.append(loop.call_later(stop_seconds, cut_short, task))

    def cut_short(task: asyncio.Task[object]) -> None:
        logger.error("not everything was drained in the %g s of runtime.stop_seconds", stop_seconds)
        task.cancel()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        await role(shutdown)
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for deadline in deadlines:
            deadline.cancel()
