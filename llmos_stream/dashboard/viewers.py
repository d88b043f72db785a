"""Who holds an event stream of the page: a bounded number, and no address shuts another out."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network

_SITE_BITS = 64  # of an IPv6 address: whoever has one has all of these


class Viewers:
    """The open streams, at most `most`.

    Where one more comes, the oldest stream of the address that holds most of them ends, so that the newest viewer is
    always let in. A page whose stream has ended connects again.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[asyncio.Event, str] = {}  # what ends a stream, and its address, the oldest first

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def watching(self, address: str | None) -> Iterator[asyncio.Event]:
        """Count one more stream meanwhile. It must end once the event is set."""
        if len(self._open) >= self._most:
            self._end_one()
        ended = asyncio.Event()
        self._open[ended] = _site_of(address or "")
        try:
            yield ended
        finally:
            self._open.pop(ended, None)

    def _end_one(self) -> None:
        held = [*self._open.values()]
        busiest = max(dict.fromkeys(held), key=held.count)
        ended = next(event for event, site in self._open.items() if site == busiest)
        del self._open[ended]
        ended.set()


def _site_of(address: str) -> str:
    """Return what stands for one viewer: an IPv4 address, or the network of an IPv6 address."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or ip_network((int(found), _SITE_BITS), strict=False))
