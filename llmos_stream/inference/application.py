"""What the APIs of predictions and of texts share: their documentation, and what a request has to pass first."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from llmos_stream.config import InferenceSettings
from llmos_stream.web.bodies import BodyLimit
from llmos_stream.web.guards import Denied, HostCheck, shown_plainly

_SMALL_BODY = 4096  # of paths that are not named: they are parsed before their token is looked at
_HOSTS = "inference.allowed_hosts (LLMOS_INFERENCE__ALLOWED_HOSTS)"


def guarded_app(
    settings: InferenceSettings,
    description: str,
    larger: Mapping[str, int],
    shape: Callable[[Denied], Any] = shown_plainly,
) -> FastAPI:
    """Make an application without paths. `larger` gives the most bytes of a body by path, `shape` an error's body."""
    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="llmos_stream inference",
        version="1",
        description=description,
        swagger_ui_parameters={"validatorUrl": None},  # no picture from elsewhere
    )
    app.add_middleware(
        BodyLimit,
        max_bytes=min(_SMALL_BODY, settings.max_body_bytes),
        larger=larger,
        held_bytes=settings.max_bodies_bytes,
        shape=shape,
    )
    app.add_middleware(HostCheck, host=settings.host, allowed=settings.allowed_hosts, setting=_HOSTS, shape=shape)
    return app
