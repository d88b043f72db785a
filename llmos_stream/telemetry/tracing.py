"""Spans: which update became which version, and how long each step took.

A span is entered by name where the work is done. It reaches the process's tracer through the context, and costs next
to nothing where there is none. A record's header carries the span that it was sent from, as W3C Trace Context has it
(`traceparent: 00-<trace id>-<span id>-<flags>`). A header comes from outside: one of another form counts as none.
Attributes say who and which, never data: client, sequence, version, codec, bytes, staleness.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple, Protocol, Self

from llmos_stream.config import TracingSettings
from llmos_stream.errors import ConfigError, install

HEADER = "traceparent"
_MAX_BYTES = 128
_MAX_HEADERS = 32
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)

Attribute = str | int | float | bool


class TraceParent(NamedTuple):
    """A reference to a span. `sampled` says whether its process keeps it."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def parse(cls, value: object) -> Self | None:
        """Read a header's value; None where it is not of the form."""
        if not isinstance(value, bytes) or len(value) > _MAX_BYTES or (found := _FORM.fullmatch(value)) is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == b"ff" or (version == b"00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))

    def dump(self) -> bytes:
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)


class Span(Protocol):
    """A piece of work under way."""

    @property
    def parent(self) -> TraceParent | None:
        """This span as the parent of others. None where nothing is traced."""

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes."""


class Tracer(Protocol):
    """Where a process's spans go."""

    def span(
        self, name: str, parent: TraceParent | None, links: Iterable[TraceParent], attributes: Mapping[str, Attribute]
    ) -> AbstractContextManager[Span]:
        """A span that begins and ends with the block. Without `parent` it is a child of the one around it."""

    def current(self) -> TraceParent | None:
        """The span around the caller."""

    def close(self) -> None:
        """Send what waits, for a bounded time."""


class _NoSpan:
    """A span that nobody keeps."""

    parent = None

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        pass


_NO_ATTRIBUTES: Mapping[str, Attribute] = {}
_NO_SPAN = nullcontext(_NoSpan())
_current: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def span(
    name: str,
    attributes: Mapping[str, Attribute] = _NO_ATTRIBUTES,
    *,
    parent: TraceParent | None = None,
    links: Iterable[TraceParent] = (),
) -> AbstractContextManager[Span]:
    """A span around a block. See `Tracer.span`."""
    tracer = _current.get()
    return _NO_SPAN if tracer is None else tracer.span(name, parent, links, attributes)


def follow(name: str, parent: TraceParent | None, attributes: Mapping[str, Attribute]) -> AbstractContextManager[Span]:
    """A child of `parent`; no span where the parent was not traced."""
    return _NO_SPAN if parent is None else span(name, attributes, parent=parent)


def tracing() -> bool:
    """Whether spans of this context are kept."""
    return _current.get() is not None


def trace_headers() -> tuple[tuple[str, bytes], ...]:
    """Return the headers of a record that is sent from the current span."""
    tracer = _current.get()
    current = None if tracer is None else tracer.current()
    return () if current is None else ((HEADER, current.dump()),)


def traceparent_of(headers: Iterable[tuple[str, object]]) -> TraceParent | None:
    """Return the span that a record was sent from, None where its headers name none."""
    for number, (name, value) in enumerate(headers):
        if name == HEADER:
            return TraceParent.parse(value)
        if number == _MAX_HEADERS:
            break
    return None


@contextmanager
def tracing_to(tracer: Tracer | None) -> Iterator[None]:
    """Send spans of this context, and of the tasks made in it, to `tracer` meanwhile. None changes nothing."""
    if tracer is None:
        yield
        return
    token = _current.set(tracer)
    try:
        yield
    finally:
        _current.reset(token)


def open_tracer(settings: TracingSettings, facts: Mapping[str, str]) -> Tracer | None:
    """Return a tracer, which the caller closes, or None where no endpoint is set.

    `facts` are `role`, `federation` and `version` of the process.

    Raises:
        ConfigError: The extra `tracing` is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from llmos_stream.telemetry.otlp import OpenTelemetry  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ConfigError(f"tracing.endpoint needs {error.name}; {install('tracing')}") from None
    return OpenTelemetry(settings, facts)


@contextmanager
def traced(settings: TracingSettings, facts: Mapping[str, str]) -> Iterator[None]:
    """Send the spans of this context, and of the tasks made in it, by a tracer of its own: see `open_tracer`."""
    tracer = open_tracer(settings, facts)
    try:
        with tracing_to(tracer):
            yield
    finally:
        if tracer is not None:
            tracer.close()
