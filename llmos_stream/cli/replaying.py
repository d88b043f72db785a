"""What the commands that replay a log share: the log opened, the versions that were asked for, a progress bar."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from llmos_stream.cli.common import err
from llmos_stream.cli.process import federation_of
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from llmos_stream.replay.index import Index
    from llmos_stream.replay.replay_log import ReplayLog


@asynccontextmanager
async def opened(settings: Settings) -> "AsyncIterator[ReplayLog]":
    """Give the log, with its index read."""
    from llmos_stream.broker import connect
    from llmos_stream.log.versions import local_rule
    from llmos_stream.replay.replay_log import ReplayLog
    from llmos_stream.runtime import Offload
    from llmos_stream.training import use_threads

    use_threads(settings.runtime)
    async with (
        connect(settings.broker) as broker,
        Offload(settings.runtime.workers) as offload,
        AsyncExitStack() as stack,
    ):
        log = ReplayLog(federation_of(broker, settings, offload), local_rule(settings).names)
        with err().status("reading the log ..."):
            await stack.enter_async_context(log)
        yield log


def numbers_of(text: str | None, index: "Index", federation: str) -> range:
    """Return the versions that `N` or `N-M` means; all without it.

    Raises:
        NotFound: The log does not hold them.
    """
    there = index.numbers
    if not there:
        raise NotFound(f"federation {federation} has no versions in the log; is its aggregator running?")
    if text is None:
        return there
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if found is None or first > last:
        raise ConfigError(f"versions are a number or a range such as 5-12, not {text!r}")
    if first not in there or last not in there:
        missing = f"versions {text} are not all" if found[2] else f"version {text} is not"
        raise NotFound(f"{missing} in the log, which holds {there.start} to {there.stop - 1}")
    return range(first, last + 1)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, where that is a terminal; gives what moves it on by one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
