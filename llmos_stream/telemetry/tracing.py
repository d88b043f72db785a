"""Traces, where `tracing.endpoint` is set: which update became which version, and how long each step took.

A span is entered by name, wherever the work is done; it reaches the process's tracer through the context, and costs
next to nothing where there is none. Spans travel from process to process in a record's header, as W3C Trace Context
writes them (`traceparent: 00-<trace id>-<span id>-<flags>`). A header comes from outside: one that is not of that form
is as good as none. What spans say is who and which, never data: client, sequence, version, codec, bytes, staleness.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from llmos_stream.config import TracingSettings
from llmos_stream.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

HEADER = "traceparent"
_MOST_BYTES = 128
_MOST_HEADERS = 32
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)

Attribute = str | int | float | bool


class TraceParent(NamedTuple):
    """A span, as others refer to it. `sampled` says whether its process keeps it."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def parse(cls, value: object) -> Self | None:
        """What a header says; None where it is not one that we can read."""
        if not isinstance(value, bytes) or len(value) > _MOST_BYTES or (found := _FORM.fullmatch(value)) is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == b"ff" or (version == b"00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))

    def dump(self) -> bytes:
        """The header's value."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)


class Span(Protocol):
    """A piece of work under way."""

    @property
    def parent(self) -> TraceParent | None:
        """This span, for those that come of it. None where nothing is traced."""

    def say(self, attributes: Mapping[str, Attribute]) -> None:
        """Say more about it."""


class Tracer(Protocol):
    """Where a process's spans go."""

    def span(
        self, name: str, parent: TraceParent | None, links: Iterable[TraceParent], attributes: Mapping[str, Attribute]
    ) -> AbstractContextManager[Span]:
        """A span that begins and ends with the block. Without `parent` it is a part of the one around it."""

    def current(self) -> TraceParent | None:
        """The span around the caller."""

    def close(self) -> None:
        """Send what waits, for a bounded time."""


class _Nothing:
    """A span that nobody keeps."""

    parent = None

    def say(self, attributes: Mapping[str, Attribute]) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NONE: Mapping[str, Attribute] = {}
_NOTHING = _Nothing()
_current: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def span(
    name: str,
    attributes: Mapping[str, Attribute] = _NONE,
    *,
    parent: TraceParent | None = None,
    links: Iterable[TraceParent] = (),
) -> AbstractContextManager[Span]:
    """A span around a block. See `Tracer.span`."""
    tracer = _current.get()
    return _NOTHING if tracer is None else tracer.span(name, parent, links, attributes)


def follow(name: str, came: TraceParent | None, attributes: Mapping[str, Attribute]) -> AbstractContextManager[Span]:
    """A span that follows from `came`; none where nobody traced what it comes of."""
    return _NOTHING if came is None else span(name, attributes, parent=came)


def tracing() -> bool:
    """Whether anybody keeps spans here."""
    return _current.get() is not None


def trace_headers() -> tuple[tuple[str, bytes], ...]:
    """The headers of a record that is sent as a part of the present span."""
    tracer = _current.get()
    current = None if tracer is None else tracer.current()
    return () if current is None else ((HEADER, current.dump()),)


def traceparent_of(headers: Iterable[tuple[str, object]]) -> TraceParent | None:
    """The span that a record was sent from; None where it says nothing of the kind."""
    for number, (name, value) in enumerate(headers):
        if name == HEADER:
            return TraceParent.parse(value)
        if number == _MOST_HEADERS:
            break
    return None


@contextmanager
def traced(
    settings: TracingSettings, facts: Mapping[str, str], exporter: "SpanExporter | None" = None
) -> Iterator[None]:
    """Spans of this context, and of the tasks made in it, go to `tracing.endpoint` (or `exporter`) meanwhile.

    See `open_tracer`.
    """
    tracer = open_tracer(settings, facts, exporter)
    try:
        with tracing_to(tracer):
            yield
    finally:
        if tracer is not None:
            tracer.close()


@contextmanager
def tracing_to(tracer: Tracer | None) -> Iterator[None]:
    """Spans of this context, and of the tasks made in it, go there meanwhile. None changes nothing."""
    if tracer is None:
        yield
        return
    token = _current.set(tracer)
    try:
        yield
    finally:
        _current.reset(token)


def open_tracer(
    settings: TracingSettings, facts: Mapping[str, str], exporter: "SpanExporter | None" = None
) -> Tracer | None:
    """A tracer that sends to `tracing.endpoint` (or `exporter`), to be closed; None where no endpoint is set.

    `facts` are `role`, `federation` and `version` of the process. Raises ConfigError where the package for it is
    missing.
    """
    if settings.endpoint is None:
        return None
    try:
        from llmos_stream.telemetry.otlp import OpenTelemetry  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint needs {error.name}; install it with: pip install 'llmos-stream[tracing]'"
        ) from None
    return OpenTelemetry(settings, facts, exporter)
