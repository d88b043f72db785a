"""How a process works, logs and lets itself be watched."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmos_stream.config.base import Host, Positive, Section, no_secret


class RuntimeSettings(Section):
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads for tensor work, compression and hashing."""
    torch_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads inside one torch operation; 0 leaves torch's default."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""
    log_json: bool = False
    """Log one JSON object a line, for machines."""
    stop_seconds: Positive = 30.0
    """How long a process that was asked to stop may take to finish its work; then it ends at once."""


class OperationsSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Answer /health, /ready and /metrics over HTTP on this port (0: any that is free). Unset: not at all."""
    host: Host = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all, as in a container. There is no authentication."""
    stuck_seconds: Positive = 30.0
    """/health fails when the event loop has been blocked for this long."""


class TracingSettings(Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = None
    """Where spans go, as OTLP over HTTP: http://collector:4318/v1/traces. Unset: nowhere. Give a token for it in the
    variable OTEL_EXPORTER_OTLP_HEADERS."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the updates that are traced. The client decides, and all spans of its update follow."""

    @model_validator(mode="after")
    def _endpoint_without_password(self) -> Self:
        if self.endpoint is not None:
            no_secret(self.endpoint)
        return self
