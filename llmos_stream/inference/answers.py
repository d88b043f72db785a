"""The bodies of requests and answers, as the OpenAPI page shows them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from llmos_stream.inference.inputs import InputSpec
from llmos_stream.inference.model_pool import ModelPool
from llmos_stream.inference.routing import Why


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Question(_Body):
    """What to predict."""

    inputs: list[Any]
    """Examples, each as nested lists of numbers in the shape that the model takes."""
    version: StrictInt | None = None
    """Which version shall answer; one of those held. Unset: as the route says."""


class Answer(_Body):
    """A prediction, and the version that gave it."""

    version: int
    why: Why
    """Why it was this version that answered."""
    outputs: list[Any]
    """For each example the model's outputs."""


class Model(_Body):
    """A version that is held."""

    version: int
    weights_digest: str
    """As in its manifest."""
    time_ms: int
    """When it was made, in milliseconds since the epoch."""
    serves: bool
    """Whether it answers all but the canary's share."""
    newest: bool


class Models(_Body):
    """What is held, what serves, and why."""

    serving: int | None
    why: Why | None
    pin: int | None
    """The version pinned here."""
    promoted: int | None
    """The version promoted for everyone (`llmos-stream versions promote`), once it is held."""
    canary: float
    """Share of the requests that the newest answers."""
    models: list[Model]


class NewRoute(_Body):
    """Which version serves here, until this process ends."""

    pin: StrictInt | None = None
    """A version that is held. Unset: the promoted one, else the newest."""
    canary: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Share of the requests that the newest answers."""


def models_of(pool: ModelPool) -> Models:
    """Return what is loaded and what serves."""
    choice, newest = pool.serving, pool.newest
    serving = None if choice is None else choice.version
    return Models(
        serving=serving,
        why=None if choice is None else choice.why,
        pin=pool.route.pin,
        promoted=pool.promoted,
        canary=pool.route.canary,
        models=[
            Model(
                version=model.version,
                weights_digest=model.digest,
                time_ms=model.time_ms,
                serves=model.version == serving,
                newest=model.version == newest,
            )
            for model in pool.models.values()
        ],
    )


def question_schema(spec: InputSpec) -> dict[str, Any]:
    """Describe the request body for the OpenAPI page, with an example that works as it is."""
    schema = Question.model_json_schema()
    schema["properties"]["inputs"]["description"] = f"{spec}."
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": {"inputs": spec.example()}}},
    }
