"""Which names a server answers to, so that no other site's page can read it through a browser.

A site whose name is made to lead to this machine (DNS rebinding) counts as of the same origin for a browser that has
its page open, and may read all that is answered. The browser still says the name that it was given.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from socket import gethostname

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
_MISDIRECTED = 421
_SHOWN = 64
# Nobody can have one of these in the public DNS: they lead to this machine, or inside a cluster of Kubernetes.
_NOT_PUBLIC = (".localhost", ".svc", ".svc.cluster.local")


class HostCheck:
    """ASGI middleware: 421 for a request to a name that is not one of these.

    An IP address, a name without a dot, this machine's own, what can be nobody's in public, and those `allowed`.
    `setting` is what lists them, for the answer.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str], setting: str) -> None:
        self._app = app
        self._allowed = {gethostname().lower(), *(name.lower() for name in allowed)}
        self._setting = setting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if all(map(self._answers_to, hosts)):  # none was said: that is no browser
            await self._app(scope, receive, send)
            return
        shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in hosts[0])[:_SHOWN]
        said = f"this is not answered under the name {shown}: ask for localhost or an IP address, or list it in"
        await JSONResponse({"detail": f"{said} {self._setting}"}, _MISDIRECTED)(scope, receive, send)

    def _answers_to(self, host: str) -> bool:
        name = name_of(host)
        if ANY in self._allowed or name in self._allowed:
            return True
        return "." not in name or name.endswith(_NOT_PUBLIC) or _is_address(name)


def name_of(host: str) -> str:
    """The name or address in a `Host` header, without the port: `[::1]:8090` is `::1`."""
    inside, bracket, _ = host.strip().removeprefix("[").partition("]")
    name = inside if bracket else host.strip().partition(":")[0]
    return name.rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
