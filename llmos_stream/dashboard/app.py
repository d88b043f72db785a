"""The page's HTTP: the page and its files, its state as JSON, the stream of changes, an operator's actions."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import orjson
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos_stream.config import DashboardSettings
from llmos_stream.dashboard.assets import Asset
from llmos_stream.dashboard.federation_view import FederationView, Status
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.dashboard.page_state import version_details
from llmos_stream.dashboard.sse import EventResponse
from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.errors import BrokerUnavailable, ConfigError, FederationFinished, LlmosError, NotFound, TopicMissing
from llmos_stream.log.scan import LoggedHead
from llmos_stream.types import VersionHead
from llmos_stream.web.bodies import BodyLimit
from llmos_stream.web.guards import HostCheck, bearer_of, check_bearer

_MAX_BODY_BYTES = 4096
_MAX_HEADER_BYTES = 32 << 10
_MAX_VERSION = 2**63
_FINISH_SECONDS = 30.0
_MAX_LOOKED_UP = 8  # at a time
_NUMBER = re.compile(r"[0-9]{1,19}")
_UNSET = "nothing can be changed from here: set LLMOS_DASHBOARD__TOKEN and start the monitor again"
_HOSTS = "dashboard.allowed_hosts (LLMOS_DASHBOARD__ALLOWED_HOSTS)"
# plotly.js writes style sheets of its own; all else is from this origin, and nothing is inline.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True, slots=True)
class OperatorActions:
    """What an operator does from the page. Each action returns when its record is in the log."""

    set_paused: Callable[[bool], Awaitable[object]]
    promote: Callable[[int], Awaitable[object]]
    finish: Callable[[], Awaitable[object]]


def make_app(
    settings: DashboardSettings,
    view: FederationView,
    states: StateStream,
    assets: Mapping[str, Asset],
    operator: OperatorActions,
    older: OlderVersions,
) -> Starlette:
    """Make the page over parts that the caller starts and stops."""

    async def file(request: Request) -> Response:
        if (asset := assets.get(request.path_params.get("name", "index.html"))) is None:
            raise HTTPException(404, "there is no such file")
        return asset.answer(request)

    async def state(request: Request) -> Response:
        states.refresh()
        return _json(200, states.snapshot())

    async def events(request: Request) -> Response:
        return EventResponse(states, None if request.client is None else request.client.host)

    async def version(request: Request) -> Response:
        asked = request.path_params["number"]
        if not _NUMBER.fullmatch(asked):
            raise HTTPException(404, "a version is a number, as in /api/versions/12")
        return _json(200, orjson.dumps(version_details(view.versions.get(int(asked)) or await look_up(int(asked)))))

    async def look_up(number: int) -> LoggedHead[VersionHead]:
        if older.waiting >= _MAX_LOOKED_UP:
            raise HTTPException(503, "others are looking up older versions; try again")
        try:
            return await older.get(number)
        except NotFound as error:
            raise NotFound(f"{error}; a registry may have it: llmos-stream versions show {number}") from None
        except TimeoutError:
            raise HTTPException(503, f"version {number} was not found in the log in time; try again") from None

    async def set_paused(request: Request, paused: bool) -> Response:
        await _authorised(request, settings.token)
        if view.status is Status.FINISHED:
            raise HTTPException(409, "the run has finished: there is nothing to pause or resume")
        await operator.set_paused(paused)
        return _json(200, orjson.dumps({"paused": paused}))

    async def finish(request: Request) -> Response:
        await _authorised(request, settings.token)
        if view.status is Status.FINISHED:
            raise HTTPException(409, "the run has finished already")
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await operator.finish()
        except TimeoutError:
            raise HTTPException(503, "the run was asked to end, and has not ended in time; look again") from None
        return _json(200, orjson.dumps({"finished": True}))

    async def promote(request: Request) -> Response:
        asked = await _authorised(request, settings.token)
        number = asked.get("version")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < _MAX_VERSION:
            raise HTTPException(422, 'the body must name a version, as in {"version": 12}')
        await operator.promote(number)
        return _json(200, orjson.dumps({"promoted": number}))

    app = Starlette(
        routes=[
            Route("/", file),
            Route("/static/{name}", file),
            Route("/api/state", state),
            Route("/api/events", events),
            Route("/api/versions/{number}", version),
            Route("/api/pause", partial(set_paused, paused=True), methods=["POST"]),
            Route("/api/resume", partial(set_paused, paused=False), methods=["POST"]),
            Route("/api/finish", finish, methods=["POST"]),
            Route("/api/promote", promote, methods=["POST"]),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(HostCheck, host=settings.host, allowed=settings.allowed_hosts, setting=_HOSTS),
            Middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES),
        ],
        exception_handlers={HTTPException: _refusal, LlmosError: _refusal},
    )
    app.router.redirect_slashes = False
    return app


async def _authorised(request: Request, token: SecretStr | None) -> dict[str, object]:
    """Return the body of a request that carries the token."""
    wanted = None if token is None else token.get_secret_value()
    if denied := check_bearer(wanted, bearer_of(request.headers.get("authorization")), _UNSET):
        raise HTTPException(*denied)
    # A browser lets a form of another page send any other type.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(422, "the body must be JSON, with Content-Type: application/json")
    try:
        asked = orjson.loads(await request.body() or b"{}")
    except orjson.JSONDecodeError:
        raise HTTPException(422, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise HTTPException(422, "the body must be a JSON object")
    return asked


def _refusal(_: Request, error: Exception) -> Response:
    status, said = 500, str(error)
    match error:
        case HTTPException():
            status, said = error.status_code, error.detail
        case ConfigError() | NotFound():
            status = 404
        case FederationFinished():
            status = 409
        case TopicMissing():
            status, said = 409, "the federation has no topics yet: start its aggregator first"
        case BrokerUnavailable():
            status, said = 503, f"{error}; try again"
        case LlmosError() if error.retriable:  # of the registry, or of a log that retention has just cut
            status = 503
    response = _json(status, orjson.dumps({"detail": said}))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if status == 503:
        response.headers["retry-after"] = "5"
    return response


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


class _Headers:
    """ASGI middleware: every answer forbids browsers to load from elsewhere; very long request headers get 431."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        if sum(len(name) + len(value) for name, value in scope.get("headers", ())) > _MAX_HEADER_BYTES:
            answer = _json(431, orjson.dumps({"detail": f"the headers have more than {_MAX_HEADER_BYTES} bytes"}))
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)
