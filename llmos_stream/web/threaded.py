"""A small WSGI server whose answers come from threads: a bounded number, each for a bounded time."""

import logging
from contextlib import suppress
from socket import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, SHUT_RDWR, SO_REUSEADDR, SOL_SOCKET, socket
from socketserver import ThreadingMixIn
from threading import Lock
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from llmos_stream.web.addresses import family_of, takes_both

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 64  # each is a thread


class ThreadedServer(ThreadingMixIn, WSGIServer):
    """One request a connection, which ends after `request_seconds` even if the client sends or reads byte by byte.

    Above 64 connections the oldest is closed, not the newest: an orchestrator that asks for this process's health
    must get its answer at once.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, where: tuple[str, int], request_seconds: float) -> None:
        self._request_seconds = request_seconds
        self._lock = Lock()
        self._open: dict[socket, float] = {}  # time of opening, the oldest first
        host, port = where
        self.address_family = family_of(host)
        self._takes_both = takes_both(host)
        super().__init__((host, port), _Handler)

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

    def server_bind(self) -> None:
        """Bind without WSGIServer's look-up of this host's name, which may take seconds."""
        self.allow_reuse_address = True
        self.socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if self.address_family == AF_INET6:
            self.socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, not self._takes_both)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what broke a connection off."""
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
