"""Spans by OpenTelemetry, sent as OTLP over HTTP. The one module that imports it (extra `tracing`).

Spans are collected in a bounded queue and sent by a thread of its own: a collector that is slow, gone or says no costs
spans and one line in the log now and then, never the role. What else OpenTelemetry lets operators choose (headers with
a token, certificates, compression) it reads from its own variables, `OTEL_EXPORTER_OTLP_…`.
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
_QUIET_SECONDS = 300.0


class _Span:
    """See `tracing.Span`."""

    def __init__(self, inner: trace.Span) -> None:
        self._inner = inner

    @property
    def parent(self) -> TraceParent | None:
        return _named(self._inner.get_span_context())

    def say(self, attributes: Mapping[str, Attribute]) -> None:
        self._inner.set_attributes(_prefixed(attributes))


class OpenTelemetry:
    """See `tracing.Tracer`. `exporter` takes the place of the one for `tracing.endpoint`."""

    def __init__(
        self, settings: TracingSettings, facts: Mapping[str, str], exporter: SpanExporter | None = None
    ) -> None:
        endpoint = str(settings.endpoint)
        _silence(urlsplit(endpoint).netloc)
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
        # What an error says may be data: its kind is kept, its message and its trace are not.
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
        return _named(trace.get_current_span().get_span_context())

    def close(self) -> None:
        # What cannot be sent is tried again by then, with pauses: nobody waits for the end of that.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        if closing.is_alive():
            logger.warning("the last spans were not sent in %g s", _CLOSE_SECONDS)


class _Trouble(logging.Handler):
    """Says in a line of ours, and not often, what OpenTelemetry has to complain of."""

    def __init__(self, address: str) -> None:
        super().__init__(logging.WARNING)
        self._address = address
        self._said = -_QUIET_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        if monotonic() - self._said < _QUIET_SECONDS:
            return
        self._said = monotonic()
        logger.warning("spans are lost: the collector at %s does not take them; see tracing.endpoint", self._address)


def _silence(address: str) -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.handlers = [_Trouble(address)]
    theirs.propagate = False


def _prefixed(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"llmos.{name}": value for name, value in attributes.items()}


def _context(of: TraceParent) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if of.sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(of.trace_id, of.span_id, is_remote=True, trace_flags=flags)


def _named(context: trace.SpanContext) -> TraceParent | None:
    return TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled) if context.is_valid else None
