"""Where a server listens: IPv4 or IPv6, by address or by name."""

import socket

ANY_IPV6 = "::"


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of an address, or of the first address that a name leads to.

    Raises:
        OSError: The name leads nowhere.
    """
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    families = {family for family, *_ in found}
    # A name such as localhost leads to both: whoever asks under it tries IPv4 too.
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6


def takes_both(host: str) -> bool:
    """Whether a server that listens there is to answer IPv4 too."""
    return host == ANY_IPV6 and socket.has_dualstack_ipv6()


def shown(host: str, port: int) -> str:
    """Return HOST:PORT as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason_of(error: OSError | UnicodeError) -> str:
    """Say in words why a server cannot listen."""
    return (error.strerror if isinstance(error, OSError) else None) or "there is no such host"
