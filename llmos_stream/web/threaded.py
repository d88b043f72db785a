"""A small WSGI server whose answers come from threads: a bounded number, each for a bounded time."""

import logging
from contextlib import suppress
from socket import SHUT_RDWR, socket
from socketserver import ThreadingMixIn
from threading import Lock
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 64  # each is a thread


class ThreadedServer(ThreadingMixIn, WSGIServer):
    """Answers on `listener`, one request a connection.

    It ends after `request_seconds` even if the client sends or reads byte by byte.

    Above 64 connections the oldest is closed, not the newest: an orchestrator that asks for this process's health
    must get its answer at once.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket, request_seconds: float) -> None:
        self._request_seconds = request_seconds
        self._lock = Lock()
        self._open: dict[socket, float] = {}  # time of opening, the oldest first
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()  # of its own, which is not bound
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note a new connection, and close the oldest where there are too many."""
        with self._lock:
            self._open[request] = monotonic()
            if len(self._open) > _MAX_CONNECTIONS:
                self._break_off(next(iter(self._open)))
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close connections that are too old. The thread that accepts connections calls it a few times a second."""
        with self._lock:
            for request, since in [*self._open.items()]:
                if monotonic() - since <= self._request_seconds:
                    break
                self._break_off(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection. Its own thread calls it at the end."""
        with self._lock:  # before it is closed: another connection may get its descriptor then
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("a request was broken off", exc_info=True)

    def _break_off(self, request: socket) -> None:
        """Shut the connection down; its thread notices and closes it."""
        del self._open[request]
        with suppress(OSError):  # the client closed it first
            request.shutdown(SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)

    def address_string(self) -> str:
        return str(self.client_address[0])
