"""An ASGI application on a port, inside the process's own event loop and under its own signals."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from llmos_stream.errors import ConfigError
from llmos_stream.runtime.shutdown import Shutdown
from llmos_stream.runtime.tasks import run_while

log = logging.getLogger(__name__)

_BACKLOG = 1024
_MOST_CONNECTIONS = 1024  # each may hold a body; past that the answer is 503
_MOST_HEAD_BYTES = 32 << 10  # of a request's line and headers together


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # signals are the process's: they come as a Shutdown


async def serve_http(
    app: ASGIApp, where: tuple[str, int], section: str, said: str, shutdown: Shutdown, drain_seconds: float
) -> None:
    """Answer at `where` until a stop is asked for; what is under way then has `drain_seconds`.

    `section` names the settings that host and port come from, and `said` what the log says of it. Raises ConfigError
    when the port cannot be had.
    """
    with _listening(where, section) as listener:
        config = uvicorn.Config(
            app,
            http="h11",
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
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
        log.info("%s on %s:%d", said, host, port)
        await run_while(server.serve([listener]), stop())


@contextmanager
def _listening(where: tuple[str, int], section: str) -> Iterator[socket.socket]:
    host, port = where
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{section}.host, {section}.port: cannot listen on {host}:{port} ({error.strerror})"
        ) from error
    with listener:
        yield listener


def _share_logs() -> None:
    """What the server has to say goes where the package's logs go."""
    theirs, ours = logging.getLogger("uvicorn"), logging.getLogger("llmos_stream")
    theirs.handlers, theirs.propagate = ours.handlers, ours.propagate
    theirs.setLevel(max(ours.getEffectiveLevel(), logging.WARNING))
