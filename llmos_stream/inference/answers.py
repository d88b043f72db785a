"""What is said over HTTP, as the OpenAPI page shows it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from llmos_stream.inference.held import Shelf
from llmos_stream.inference.inputs import Form
from llmos_stream.inference.routing import Route, Why


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Question(_Said):
    """What to predict."""

    inputs: list[Any]
    """Examples, each as nested lists of numbers in the shape that the model takes."""
    version: StrictInt | None = None
    """Which version shall answer; one of those held. Unset: as the route says."""


class Answer(_Said):
    """A prediction, and the version that gave it."""

    version: int
    why: Why
    """Why it was this version that answered."""
    outputs: list[Any]
    """For each example the model's outputs."""


class Model(_Said):
    """A version that is held."""

    version: int
    weights_digest: str
    """As in its manifest."""
    time_ms: int
    """When it was made, in milliseconds since the epoch."""
    serves: bool
    """Whether it answers all but the canary's share."""
    newest: bool


class Models(_Said):
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


class NewRoute(_Said):
    """Which version serves here, until this process ends."""

    pin: StrictInt | None = None
    """A version that is held. Unset: the promoted one, else the newest."""
    canary: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Share of the requests that the newest answers."""

    def route(self) -> Route:
        return Route(self.pin, self.canary)


def models_of(shelf: Shelf) -> Models:
    choice, newest = shelf.serving, shelf.newest
    serving = None if choice is None else choice.version
    return Models(
        serving=serving,
        why=None if choice is None else choice.why,
        pin=shelf.route.pin,
        promoted=shelf.promoted,
        canary=shelf.route.canary,
        models=[
            Model(
                version=held.version,
                weights_digest=held.digest,
                time_ms=held.time_ms,
                serves=held.version == serving,
                newest=held.version == newest,
            )
            for held in shelf.held.values()
        ],
    )


def question_schema(form: Form) -> dict[str, Any]:
    """The request body for the OpenAPI page, with an example that can be sent as it is."""
    schema = Question.model_json_schema()
    schema["properties"]["inputs"]["description"] = f"{form}."
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": {"inputs": form.example()}}},
    }
