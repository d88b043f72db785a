"""What an operator may ask of the service: which version serves, and to go back. It takes the token of the settings."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.answers import Models, NewRoute, models_of
from llmos_stream.inference.model_pool import ModelPool, NotLoaded
from llmos_stream.inference.routing import Route
from llmos_stream.web.guards import check_bearer

_OPERATOR: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong."},
    403: {"description": "No token is set, so nobody may."},
}


def add_route(app: FastAPI, settings: InferenceSettings, pool: ModelPool) -> None:
    """Add the paths to an application."""
    operator = [Depends(_only_with(settings.token))]

    @app.get("/v1/route")
    async def route() -> Models:
        """The versions held, which of them serves, and why."""
        return models_of(pool)

    @app.put(
        "/v1/route",
        dependencies=operator,
        responses={404: {"description": "No such version is held."}, **_OPERATOR},
    )
    async def set_route(route: NewRoute) -> Models:
        """Pin a version, and send a share of the requests to the newest."""
        try:
            pool.set_route(Route(route.pin, route.canary))
        except NotLoaded as error:
            raise HTTPException(404, str(error)) from None
        return models_of(pool)

    @app.post(
        "/v1/rollback",
        dependencies=operator,
        responses={409: {"description": "There is none to go back to."}, **_OPERATOR},
    )
    async def roll_back() -> Models:
        """Pin the version that served before, and send nothing to the newest."""
        try:
            pool.roll_back()
        except NotLoaded as error:
            raise HTTPException(409, str(error)) from None
        return models_of(pool)


def _only_with(token: SecretStr | None) -> Callable[..., Awaitable[None]]:
    """Make the check that a request carries `token`."""
    bearer = HTTPBearer(auto_error=False, description="`inference.token`")

    wanted = None if token is None else token.get_secret_value()
    unset = "the route cannot be changed here: set LLMOS_INFERENCE__TOKEN and start again"

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if denied := check_bearer(wanted, None if given is None else given.credentials, unset):
            headers = {"WWW-Authenticate": "Bearer"} if denied.status == 401 else None
            raise HTTPException(denied.status, denied.detail, headers)

    return check
