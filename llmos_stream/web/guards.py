"""What a request must pass before it is handled: its host name, a bearer token.

Host names: a site whose DNS name leads to this machine (DNS rebinding) has the same origin as this server for a
browser, and its page could read every answer. The browser still sends the site's own name in the `Host` header, so
that a server which answers to its own names only is safe.
"""

from collections.abc import Callable
from ipaddress import ip_address
from secrets import compare_digest
from socket import gethostname
from typing import Any, NamedTuple

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ANY_HOST = "*"
_MISDIRECTED = 421
_MAX_SHOWN = 64
# No public DNS name can have one of these endings: they lead to this machine, or inside a Kubernetes cluster.
_NOT_PUBLIC = (".localhost", ".svc", ".svc.cluster.local")


class HostCheck:
    """ASGI middleware that answers 421 for a request under any other host name than these.

    They are: an IP address, a name without a dot, this machine's own name, a name that cannot be public, and those
    `allowed`. The answer names `setting`, which lists them.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        allowed: str | None,
        setting: str,
        shape: "Callable[[Denied], Any] | None" = None,
    ) -> None:
        """`host` is where the server listens; `allowed` lists names between commas; `shape` makes an answer's body."""
        self._app = app
        self._allowed = {gethostname().lower(), host.lower(), *(n.strip().lower() for n in (allowed or "").split(","))}
        self._setting = setting
        self._shape = shape or shown_plainly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if all(map(self._answers_to, hosts)):  # a client without the header is no browser
            await self._app(scope, receive, send)
            return
        shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in hosts[0])[:_MAX_SHOWN]
        detail = f"this is not answered under the name {shown}: ask for localhost or an IP address, or list it in"
        denied = Denied(_MISDIRECTED, f"{detail} {self._setting}")
        await JSONResponse(self._shape(denied), denied.status)(scope, receive, send)

    def _answers_to(self, host: str) -> bool:
        name = name_of(host)
        if ANY_HOST in self._allowed or name in self._allowed:
            return True
        return "." not in name or name.endswith(_NOT_PUBLIC) or _is_address(name)


def name_of(host: str) -> str:
    """Return the name or address in a `Host` header without the port: `[::1]:8090` is `::1`."""
    inside, bracket, _ = host.strip().removeprefix("[").partition("]")
    name = inside if bracket else host.strip().partition(":")[0]
    return name.rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Denied(NamedTuple):
    """Why a request is not handled: an HTTP status and a sentence."""

    status: int
    detail: str


def shown_plainly(denied: Denied) -> dict[str, str]:
    """The body of an answer that says why: the form of FastAPI's own errors."""
    return {"detail": denied.detail}


def check_bearer(token: str | None, given: str | None, unset: str) -> Denied | None:
    """Compare a request's token with the process's own, in constant time.

    Returns:
        None where they are equal; 403 with the sentence `unset` where the process has no token; else 401.
    """
    if not token:
        return Denied(403, unset)
    if not given or not compare_digest(_bytes(given), _bytes(token)):
        return Denied(401, "the token is missing or wrong")
    return None


def bearer_of(authorization: str | None) -> str | None:
    """Return the token of an `Authorization: Bearer` header, None for anything else."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
