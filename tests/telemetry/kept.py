"""Spans that are kept for a test to look at."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace.export import SpanExporter

from llmos_stream.config import TracingSettings
from llmos_stream.telemetry.otlp import OpenTelemetry
from llmos_stream.telemetry.tracing import tracing_to

FACTS = {"role": "client", "federation": "f", "version": "1"}
ON = TracingSettings(endpoint="http://127.0.0.1:1/v1/traces")


@contextmanager
def traced_to(exporter: SpanExporter, fraction: float = 1.0) -> Iterator[None]:
    """Send the spans of this context there."""
    tracer = OpenTelemetry(ON.model_copy(update={"fraction": fraction}), FACTS, exporter)
    try:
        with tracing_to(tracer):
            yield
    finally:
        tracer.close()
