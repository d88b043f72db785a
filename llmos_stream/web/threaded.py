"""A small WSGI server whose answers come from threads: a bounded number, each for a bounded time."""

import logging
from contextlib import suppress
from socket import SHUT_RDWR, SO_REUSEADDR, SOL_SOCKET, socket
from socketserver import ThreadingMixIn
from threading import Lock
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 64  # each is a thread


class ThreadedServer(ThreadingMixIn, WSGIServer):
    """One request a connection, which ends after `request_seconds`: who sends or reads byte by byte does not keep it.

    Of more than 64 connections the oldest goes, not the newest: an orchestrator that asks how this process is must be
    answered, and is at once.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, where: tuple[str, int], request_seconds: float) -> None:
        self._request_seconds = request_seconds
        self._lock = Lock()
        self._open: dict[socket, float] = {}  # since when, the oldest first
        super().__init__(where, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = monotonic()
            if len(self._open) > _MOST_CONNECTIONS:
                self._break_off(next(iter(self._open)))
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called by the thread that takes connections, a few times a second."""
        with self._lock:
            for request, since in [*self._open.items()]:
                if monotonic() - since <= self._request_seconds:
                    break
                self._break_off(request)

    def shutdown_request(self, request: Any) -> None:
        """Called by a request's own thread at its end."""
        with self._lock:  # forgotten before it is closed: its number may be another's then
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        # WSGIServer asks the resolver for this host's name, which may take seconds.
        self.allow_reuse_address = True
        self.socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("a request was broken off", exc_info=True)

    def _break_off(self, request: socket) -> None:
        """Its thread finds the connection at its end, and closes it."""
        del self._open[request]
        with suppress(OSError):  # the other side was quicker
            request.shutdown(SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)

    def address_string(self) -> str:
        return str(self.client_address[0])
