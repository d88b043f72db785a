"""An ASGI application on a port, inside the process's own event loop and under its own signals."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import uvicorn
from fastapi import FastAPI

from llmos_stream.config import InferenceSettings
from llmos_stream.errors import ConfigError
from llmos_stream.runtime import Shutdown, run_while

log = logging.getLogger(__name__)

_BACKLOG = 1024
_MOST_CONNECTIONS = 1024  # each may hold a body; past that the answer is 503


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # signals are the process's: they come as a Shutdown


async def serve_http(app: FastAPI, settings: InferenceSettings, shutdown: Shutdown, drain_seconds: float) -> None:
    """Answer until a stop is asked for; what is under way then has `drain_seconds`. Raises ConfigError."""
    with listening(settings) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=max(1, int(drain_seconds)),
        )
        server = _Server(config)
        _share_logs()

        async def stop() -> None:
            await shutdown.wait()
            server.should_exit = True

        host, port = listener.getsockname()[:2]
        log.info("predicting on %s:%d", host, port)
        await run_while(server.serve([listener]), stop())


@contextmanager
def listening(settings: InferenceSettings) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"inference.host, inference.port: cannot listen on {settings.host}:{settings.port} ({error.strerror})"
        ) from error
    with listener:
        # Connections inherit it. asyncio would set it only on sockets that name their protocol, and without it an
        # answer, which goes out in two writes, waits 40 ms for the other side's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def _share_logs() -> None:
    """What the server has to say goes where the package's logs go."""
    theirs, ours = logging.getLogger("uvicorn"), logging.getLogger("llmos_stream")
    theirs.handlers, theirs.propagate = ours.handlers, ours.propagate
    theirs.setLevel(max(ours.getEffectiveLevel(), logging.WARNING))
