"""The API on the port of its settings."""

from fastapi import FastAPI

from llmos_stream.config import InferenceSettings
from llmos_stream.runtime import Shutdown
from llmos_stream.web import server as shared
from llmos_stream.web.timeouts import Patience

_PATIENCE = Patience()


async def serve_http(
    app: FastAPI,
    settings: InferenceSettings,
    shutdown: Shutdown,
    drain_seconds: float,
    patience: Patience = _PATIENCE,
) -> None:
    """Answer until a stop is asked for; what is under way then has `drain_seconds`. Raises ConfigError."""
    place = shared.Place("inference", settings.host, settings.port)
    await shared.serve_http(app, place, "predicting", shutdown, drain_seconds, patience=patience)
