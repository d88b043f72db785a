"""Logs on standard error: lines for people or JSON for machines. They hold no data and no secrets."""

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import orjson

from llmos_stream.config import RuntimeSettings


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
