"""aiokafka's own log, made fit for people: what is retried is not repeated ten times a second.

Why a first connection failed is collected instead, so that the one error we raise can name the reason.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import aiokafka.errors as theirs

_INTERVAL_SECONDS = 30.0
_FIRST_CONNECTION = 'Unable connect to "%s:%s": %s'
_NOT_WRITTEN = "Got error produce response on topic-partition"
_SAID_ELSEWHERE = (
    _NOT_WRITTEN,
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
        self.too_few: dict[str, float] = {}
        """When a record of a topic was refused last because too few of its replicas are in sync."""

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
            self._note(record)
            return False
        now = time.monotonic()
        if now - self._last.get(record.msg, -_INTERVAL_SECONDS) < _INTERVAL_SECONDS:
            return False
        self._last[record.msg] = now
        return True

    def _note(self, record: logging.LogRecord) -> None:
        match record.args:
            case (at, error) if record.msg.startswith(_NOT_WRITTEN) and error in _TOO_FEW:
                self.too_few[getattr(at, "topic", "")] = time.monotonic()


_TOO_FEW = (theirs.NotEnoughReplicasError, theirs.NotEnoughReplicasAfterAppendError)
_calm = _Calm()


def has_too_few_replicas(topic: str, since: float) -> bool:
    """Whether Kafka has refused a record of the topic for that, after `since` on the monotonic clock.

    aiokafka tries again for ever then, and says it in its log alone.
    """
    return _calm.too_few.get(topic, since) > since


def calm_aiokafka() -> None:
    """Put the filter on every logger of aiokafka; doing it twice changes nothing."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "aiokafka":
            logging.getLogger(name).addFilter(_calm)
