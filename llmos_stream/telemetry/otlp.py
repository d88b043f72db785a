"""Spans by OpenTelemetry, sent as OTLP over HTTP. The one module that imports it (extra `tracing`).

A thread of its own sends the spans from a bounded queue. A collector that is slow, gone or refuses costs spans and a
line in the log now and then, and never holds the role up. OpenTelemetry reads further choices of an operator (headers
with a token, certificates, compression) from its own variables, `OTEL_EXPORTER_OTLP_…`.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from llmos_stream.config import TracingSettings
from llmos_stream.telemetry.tracing import Attribute, TraceParent

logger = logging.getLogger(__name__)

_EXPORT_SECONDS = 5.0
_CLOSE_SECONDS = 3.0
_DELAY_MS = 1000
_QUEUED = 4096
_WARNING_SECONDS = 300.0


class _Span:
    """See `tracing.Span`."""

    def __init__(self, inner: trace.Span) -> None:
        self._inner = inner

    @property
    def parent(self) -> TraceParent | None:
        return _parent_of(self._inner.get_span_context())

    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        self._inner.set_attributes(_prefixed(attributes))


class OpenTelemetry:
    """See `tracing.Tracer`. `exporter` takes the place of the one for `tracing.endpoint`."""

    def __init__(
        self, settings: TracingSettings, facts: Mapping[str, str], exporter: SpanExporter | None = None
    ) -> None:
        endpoint = str(settings.endpoint)
        _replace_warnings(urlsplit(endpoint).netloc)
        resource = Resource.create(
            {
                "service.name": f"llmos-{facts['role']}",
                "service.namespace": facts["federation"],
                "service.version": facts["version"],
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.fraction)), resource=resource, shutdown_on_exit=False
        )
        sending = exporter or OTLPSpanExporter(endpoint, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(sending, max_queue_size=_QUEUED, schedule_delay_millis=_DELAY_MS)
        )
        self._tracer = self._provider.get_tracer("llmos_stream", facts["version"])

    @contextmanager
    def span(
        self, name: str, parent: TraceParent | None, links: Iterable[TraceParent], attributes: Mapping[str, Attribute]
    ) -> Iterator[_Span]:
        # An error's message and its stack may hold data: only its class is kept.
        with self._tracer.start_as_current_span(
            name,
            context=None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(_context(parent))),
            links=[trace.Link(_context(link)) for link in links],
            attributes=_prefixed(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as inner:
            try:
                yield _Span(inner)
            except BaseException as error:
                inner.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def current(self) -> TraceParent | None:
        return _parent_of(trace.get_current_span().get_span_context())

    def close(self) -> None:
        # The exporter repeats what it cannot send, with pauses: the process waits for a bounded time only.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        if closing.is_alive():
            logger.warning("the last spans were not sent in %g s", _CLOSE_SECONDS)


class _OwnWarning(logging.Handler):
    """Logs one line of our own, at most every 300 s, in place of OpenTelemetry's complaints."""

    def __init__(self, address: str) -> None:
        super().__init__(logging.WARNING)
        self._address = address
        self._logged = -_WARNING_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        if monotonic() - self._logged < _WARNING_SECONDS:
            return
        self._logged = monotonic()
        logger.warning("spans are lost: the collector at %s does not take them; see tracing.endpoint", self._address)


def _replace_warnings(address: str) -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.handlers = [_OwnWarning(address)]
    theirs.propagate = False


def _prefixed(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"llmos.{name}": value for name, value in attributes.items()}


def _context(parent: TraceParent) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)


def _parent_of(context: trace.SpanContext) -> TraceParent | None:
    return TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled) if context.is_valid else None
