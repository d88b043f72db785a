"""Errors of a task's own code, as one line each: which task, what it raised, and where."""

import logging
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from llmos_stream.config import redacted
from llmos_stream.errors import LlmosError, TaskError

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = {Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}


@contextmanager
def task_errors(entry: str) -> Iterator[None]:
    """Run the code of the task that `entry` names.

    The task's own traceback goes to the log, at level debug. What this package raises on purpose passes.

    Raises:
        TaskError: the task's code raised something else; the message says what, and at which of its lines.
    """
    try:
        yield
    except LlmosError:
        raise
    except Exception as error:
        logger.debug("the task's own traceback\n%s", redacted("".join(traceback.format_exception(error))))
        raise TaskError(f"task.entry {entry!r}: {described(error, entry)}") from error


def described(error: Exception, entry: str) -> str:
    """What was raised, in one line, with the innermost line of the task's own code on the way there.

    Drivers name what they could not open, with the password in it.
    """
    what = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
    place = _place(error.__traceback__, entry.partition(":")[0].partition(".")[0])
    return what if place is None else f"{what} ({place})"


def _place(trace: TracebackType | None, package: str) -> str | None:
    found = None
    while trace is not None:
        frame = trace.tb_frame
        name, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
        if name.partition(".")[0] == package or _is_own(file):
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _is_own(file: str) -> bool:
    """Whether a file belongs neither to this package nor to a library."""
    return not (file.startswith("<") or ({_PACKAGE, *_LIBRARIES} & set(Path(file).parents)))
