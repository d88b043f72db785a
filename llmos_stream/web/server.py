"""An ASGI application on a port, inside the process's own event loop and under its own signals."""

import logging
from contextlib import nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmos_stream.runtime.shutdown import Shutdown
from llmos_stream.runtime.tasks import run_while
from llmos_stream.web.addresses import ListenAddress, listening, shown
from llmos_stream.web.timeouts import ConnectionLimits, with_limits

logger = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 32 << 10  # of a request's line and headers together
_LIMITS = ConnectionLimits()


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # signals are the process's: they come as a Shutdown


async def serve_http(
    app: ASGIApp,
    address: ListenAddress,
    what: str,
    shutdown: Shutdown,
    drain_seconds: float,
    *,
    strict: bool = False,
    limits: ConnectionLimits = _LIMITS,
) -> None:
    """Serve `app` until a stop is asked for; requests under way have `drain_seconds` then.

    The log calls the server `what`, as in "predicting". `strict` takes the parser that is written in Python: it is
    slower, and it breaks off endless headers.

    Raises:
        ConfigError: The port cannot be opened.
    """
    with listening(address) as listener:
        config = uvicorn.Config(
            app,
            http=with_limits(H11Protocol if strict else AutoHTTPProtocol, limits),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections * 9 // 8,  # above this the answer is 503
            timeout_graceful_shutdown=max(1, int(drain_seconds)),
        )
        server = _Server(config)
        _share_logs()

        async def stop() -> None:
            await shutdown.wait()
            server.should_exit = True

        host, port = listener.getsockname()[:2]
        logger.info("%s on %s", what, shown(host, port))
        await run_while(server.serve([listener]), stop())


def _share_logs() -> None:
    """Send uvicorn's logs where the package's logs go."""
    theirs, ours = logging.getLogger("uvicorn"), logging.getLogger("llmos_stream")
    theirs.handlers, theirs.propagate = ours.handlers, ours.propagate
    theirs.setLevel(max(ours.getEffectiveLevel(), logging.WARNING))
