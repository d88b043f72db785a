"""Where a server listens: IPv4 or IPv6, by address or by name."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmos_stream.errors import ConfigError

_ANY_IPV6 = "::"
_BACKLOG = 1024
_TCP_USER_TIMEOUT_MS = 30_000


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens; `section` names the settings that it comes from."""

    section: str
    host: str
    port: int


@contextmanager
def listening(address: ListenAddress) -> Iterator[socket.socket]:
    """Hold a listening socket.

    Raises:
        ConfigError: The port cannot be opened.
    """
    try:
        listener = socket.create_server(
            (address.host, address.port),
            family=_family_of(address.host),
            backlog=_BACKLOG,
            dualstack_ipv6=address.host == _ANY_IPV6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, UnicodeError) as error:
        names, where = f"{address.section}.host, {address.section}.port", shown(address.host, address.port)
        reason = (error.strerror if isinstance(error, OSError) else None) or "there is no such host"
        raise ConfigError(f"{names}: cannot listen on {where} ({reason})") from error
    with listener:
        # Connections inherit it. asyncio sets it only on sockets that name their protocol. Without it an answer, which
        # goes out in two writes, waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that vanished is given up after this time; only Linux has the option.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
        yield listener


def shown(host: str, port: int) -> str:
    """Return HOST:PORT as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family_of(host: str) -> socket.AddressFamily:
    """Return the family of an address, or of the first address that a name leads to."""
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    families = {family for family, *_ in found}
    # A name such as localhost leads to both: whoever asks under it tries IPv4 too.
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
