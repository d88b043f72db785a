"""The HTTP API: predict, list the loaded versions, choose which one serves. `/docs` shows it."""

from time import perf_counter
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import ValidationError
from torch import Tensor

from llmos_stream.config import InferenceSettings, explain
from llmos_stream.inference.answers import Answer, Models, Question, models_of, question_schema
from llmos_stream.inference.application import guarded_app
from llmos_stream.inference.batching import Batcher, Busy, PredictionFailed
from llmos_stream.inference.inputs import BadInput, InputSpec, check_counts, read_inputs
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import ModelPool, NotLoaded
from llmos_stream.inference.route_api import add_route
from llmos_stream.runtime import Offload

_PREDICT = "/v1/predict"
_LARGE_BODY = 1 << 16
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such version is held."},
    413: {"description": "The body is too large."},
    422: {"description": "The inputs are not what the model takes."},
    503: {"description": "Too much is waiting, or there is no version yet."},
}


def make_app(
    settings: InferenceSettings,
    spec: InputSpec,
    pool: ModelPool,
    batcher: Batcher,
    metrics: InferenceMetrics,
    offload: Offload,
) -> FastAPI:
    """Make the API over parts that the caller starts and stops."""
    description = "Predictions by the versions of a federation. Every answer names the version that gave it."
    app = guarded_app(settings, description, {_PREDICT: settings.max_body_bytes})

    @app.post(_PREDICT, response_model=Answer, responses=_ERRORS, openapi_extra={"requestBody": question_schema(spec)})
    async def predict(request: Request) -> Response:
        """Outputs of the model for a list of examples."""
        begun, version, status = perf_counter(), None, 500
        try:
            body = await request.body()
            read = (body, spec, settings.max_batch)
            asked, inputs = await offload.run(_read, *read) if len(body) > _LARGE_BODY else _read(*read)
            model, why = pool.pick(asked)
            version = model.version
            outputs = await batcher.predict(model, inputs)
            status = 200
            answer = Answer.model_construct(version=version, why=why, outputs=outputs)
            return Response(answer.model_dump_json(), media_type="application/json")
        except BadInput as error:
            status = 422
            raise HTTPException(status, str(error)) from None
        except NotLoaded as error:
            status = 404 if pool.models else 503
            raise HTTPException(status, str(error), _retry(status)) from None
        except Busy as error:
            status = 503
            raise HTTPException(status, str(error), _retry(status)) from None
        except PredictionFailed as error:
            raise HTTPException(status, str(error)) from None
        finally:
            metrics.answered(version, status, perf_counter() - begun)

    @app.get("/v1/models")
    async def models() -> Models:
        """The versions held, which of them serves, and why."""
        return models_of(pool)

    add_route(app, settings, pool)
    return app


def _read(body: bytes, spec: InputSpec, max_examples: int) -> tuple[int | None, Tensor]:
    """Return the version that the question names, and its inputs."""
    check_counts(body, spec, max_examples)
    try:
        question = Question.model_validate_json(body)
    except ValidationError as error:
        raise BadInput(explain(error)) from None
    return question.version, read_inputs(question.inputs, spec, max_examples)


def _retry(status: int) -> dict[str, str] | None:
    return {"Retry-After": "1"} if status == 503 else None
