"""Logs on standard error: lines for people or JSON for machines. They hold no data and no secrets."""

import logging
import sys
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TextIO

import orjson

from llmos_stream.config import RuntimeSettings
from llmos_stream.runtime.clock import SYSTEM_CLOCK, Clock

LINES = 30
_SECONDS = 60.0
_KEPT = 256


class Sparing(logging.Filter):
    """Let at most LINES lines about one thing through in a minute: a flood of rubbish must not flood the log.

    What a line is about is its `about`, where that is given as `extra`, else its text without the arguments.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._clock = clock
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        about, now = str(getattr(record, "about", record.msg)), self._clock.monotonic()
        begun, lines = self._said.pop(about, (now, 0))
        if now - begun >= _SECONDS:
            begun, lines = now, 0
        self._said[about] = begun, lines + 1
        if len(self._said) > _KEPT:
            self._said.popitem(last=False)
        if lines + 1 == LINES:
            record.msg = f"{record.msg} (more like this is counted, and not shown for a minute)"
        return lines < LINES


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def report_end(text: str) -> None:
    """Write why the process ends to standard error, as plain text or as JSON, like the logs."""
    root = logging.getLogger("llmos_stream")
    if any(isinstance(handler.formatter, _JsonFormatter) for handler in root.handlers):
        root.critical(text)
    else:
        sys.stderr.write(f"{text}\n")


def configure_logging(settings: RuntimeSettings, stream: TextIO | None = None) -> None:
    """Send the package's logs to `stream` (standard error by default), at the level of the settings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    if settings.log_json:
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("llmos_stream")
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    root.propagate = False
