"""An ASGI application on a port, inside the process's own event loop and under its own signals."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmos_stream.errors import ConfigError
from llmos_stream.runtime.shutdown import Shutdown
from llmos_stream.runtime.tasks import run_while
from llmos_stream.web.timeouts import Patience, patient

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_UNHEARD_MS = 30_000
_MOST_HEAD_BYTES = 32 << 10  # of a request's line and headers together
_PATIENCE = Patience()


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # signals are the process's: they come as a Shutdown


@dataclass(frozen=True, slots=True)
class Place:
    """Where to answer; `section` names the settings that it comes from."""

    section: str
    host: str
    port: int


async def serve_http(
    app: ASGIApp,
    place: Place,
    said: str,
    shutdown: Shutdown,
    drain_seconds: float,
    *,
    strict: bool = False,
    patience: Patience = _PATIENCE,
) -> None:
    """Answer until a stop is asked for; what is under way then has `drain_seconds`. `said` is for the log.

    `strict` takes the parser that is written in Python: slower, and it breaks off endless headers. Who takes longer
    than `patience` says loses its connection. Raises ConfigError when the port cannot be had.
    """
    with listening(place) as listener:
        config = uvicorn.Config(
            app,
            http=patient(H11Protocol if strict else AutoHTTPProtocol, patience),
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=patience.connections * 9 // 8,  # past this the answer is 503
            timeout_graceful_shutdown=max(1, int(drain_seconds)),
        )
        server = _Server(config)
        _share_logs()

        async def stop() -> None:
            await shutdown.wait()
            server.should_exit = True

        host, port = listener.getsockname()[:2]
        logger.info("%s on %s:%d", said, host, port)
        await run_while(server.serve([listener]), stop())


@contextmanager
def listening(place: Place) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        listener = socket.create_server((place.host, place.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{place.section}.host, {place.section}.port: cannot listen on {place.host}:{place.port} ({error.strerror})"
        ) from error
    with listener:
        # Connections inherit it. asyncio would set it only on sockets that name their protocol, and without it an
        # answer, which goes out in two writes, waits 40 ms for the other side's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Nor is one that vanished without a word waited for longer than this; Linux has it.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
        yield listener


def _share_logs() -> None:
    """What the server has to say goes where the package's logs go."""
    theirs, ours = logging.getLogger("uvicorn"), logging.getLogger("llmos_stream")
    theirs.handlers, theirs.propagate = ours.handlers, ours.propagate
    theirs.setLevel(max(ours.getEffectiveLevel(), logging.WARNING))
