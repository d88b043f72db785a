"""aiokafka's own log, made fit for people: what is retried is not repeated ten times a second.

Why a first connection failed is collected instead, so that the one error we raise can name the reason.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_INTERVAL_SECONDS = 30.0
_FIRST_CONNECTION = 'Unable connect to "%s:%s": %s'
_SAID_ELSEWHERE = (
    "Got error produce response on topic-partition",
    "Group Coordinator Request failed",
    "Unexpected error during InitProducerIdRequest",
    "Topic %s not found in cluster metadata",
    "Topic %s is not authorized for this client",
)
"""What is retried, or what we raise an error of our own for."""

_reasons: ContextVar[list[object] | None] = ContextVar("reasons", default=None)


@contextmanager
def collected_reasons() -> Iterator[list[object]]:
    """The errors that aiokafka would log for connections that fail in this block."""
    reasons: list[object] = []
    token = _reasons.set(reasons)
    try:
        yield reasons
    finally:
        _reasons.reset(token)


class _Calm(logging.Filter):
    """Lets each kind of complaint through once in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            # Its information (coordinators found, topics subscribed) is for those who debug aiokafka.
            return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        if record.exc_info:
            return True
        if record.msg == _FIRST_CONNECTION and (reasons := _reasons.get()) is not None:
            reasons += record.args[2:] if isinstance(record.args, tuple) else ()
            return False
        if str(record.msg).startswith(_SAID_ELSEWHERE):
            return False
        now = time.monotonic()
        if now - self._last.get(record.msg, -_INTERVAL_SECONDS) < _INTERVAL_SECONDS:
            return False
        self._last[record.msg] = now
        return True


_calm = _Calm()


def calm_aiokafka() -> None:
    """Put the filter on every logger of aiokafka; doing it twice changes nothing."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "aiokafka":
            logging.getLogger(name).addFilter(_calm)
