"""Starts and ends tracing in a process, where `tracing.endpoint` is set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmos_stream.config import TracingSettings
from llmos_stream.errors import ConfigError
from llmos_stream.telemetry.tracing import Tracer, tracing_to

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


def open_tracer(
    settings: TracingSettings, facts: Mapping[str, str], exporter: "SpanExporter | None" = None
) -> Tracer | None:
    """Return a tracer, which the caller closes, or None where no endpoint is set.

    Args:
        settings: Where the spans go.
        facts: `role`, `federation` and `version` of the process.
        exporter: Takes the place of the one for `tracing.endpoint`.

    Raises:
        ConfigError: The extra `tracing` is not installed.
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


@contextmanager
def traced(
    settings: TracingSettings, facts: Mapping[str, str], exporter: "SpanExporter | None" = None
) -> Iterator[None]:
    """Send the spans of this context, and of the tasks made in it, by a tracer of its own: see `open_tracer`."""
    tracer = open_tracer(settings, facts, exporter)
    try:
        with tracing_to(tracer):
            yield
    finally:
        if tracer is not None:
            tracer.close()
