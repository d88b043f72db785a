"""The API on the port of its settings."""

from fastapi import FastAPI

from llmos_stream.config import InferenceSettings
from llmos_stream.runtime import Shutdown
from llmos_stream.web import server as shared
from llmos_stream.web.timeouts import ConnectionLimits

_LIMITS = ConnectionLimits()


async def serve_http(
    app: FastAPI,
    settings: InferenceSettings,
    shutdown: Shutdown,
    drain_seconds: float,
    limits: ConnectionLimits = _LIMITS,
) -> None:
    """Answer until a stop is asked for; what is under way then has `drain_seconds`. Raises ConfigError."""
    place = shared.ListenAddress("inference", settings.host, settings.port)
    await shared.serve_http(app, place, "predicting", shutdown, drain_seconds, limits=limits)
