"""The HTTP API of a language model: chat, completions and models as OpenAI has them, and which version serves."""

from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.application import guarded_app
from llmos_stream.inference.generation.answers import (
    DONE,
    Answers,
    ChatAnswers,
    CompletionAnswers,
    event,
    model_name,
    usage_of,
)
from llmos_stream.inference.generation.asked import (
    ChatRequest,
    CompletionRequest,
    read_chat,
    read_completion,
)
from llmos_stream.inference.generation.errors import Refused, error_answer, error_body
from llmos_stream.inference.generation.generator import (
    Ask,
    Busy,
    GenerationFailed,
    Generator,
    Gone,
    Piece,
    Reply,
)
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import LoadedModel, ModelPool, NotLoaded
from llmos_stream.inference.route_api import add_route
from llmos_stream.inference.routing import Why
from llmos_stream.runtime import Offload
from llmos_stream.runtime.tasks import run_while
from llmos_stream.training.llm.prompts import BadPrompt, Prompts, context_of
from llmos_stream.training.llm.versions import VersionedModel
from llmos_stream.web.guards import Denied

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_BYTES_A_TOKEN = 64  # of a body: as many as a long word takes with its letters escaped
_SLACK = 1 << 16
_GONE = 499  # what logs and metrics commonly call a client that has left


def make_app(
    settings: InferenceSettings,
    name: str,
    model: VersionedModel,
    pool: ModelPool,
    generator: Generator,
    metrics: InferenceMetrics,
    counts: GenerationMetrics,
    offload: Offload,
) -> FastAPI:
    """Make the API over parts that the caller starts and stops. `name` is the federation's, and so the model's."""
    asking = _Asking(settings, name, model, pool, generator, metrics, counts, offload)
    largest = min(settings.max_body_bytes, _BYTES_A_TOKEN * asking.context + _SLACK)
    description = "Texts by the versions of a federation. Every answer names the version that gave it."
    app = guarded_app(settings, description, {CHAT: largest, COMPLETIONS: largest}, _denied)
    _answer_errors(app)

    @app.post(CHAT, openapi_extra=_takes(ChatRequest))
    async def chat(request: Request) -> Response:
        """The next message of a chat."""
        return await asking.answer(request, asking.chat, ChatAnswers)

    @app.post(COMPLETIONS, openapi_extra=_takes(CompletionRequest))
    async def complete(request: Request) -> Response:
        """A text, continued."""
        return await asking.answer(request, asking.completion, CompletionAnswers)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The versions held: `name` is that which serves, `name:12` one of them."""
        return {"object": "list", "data": [_model(name, name, pool), *(_held(name, one) for one in _newest(pool))]}

    @app.get("/v1/models/{wanted}")
    async def one_model(wanted: str) -> dict[str, Any]:
        """One of these."""
        if wanted == name:
            return _model(name, name, pool)
        return _held(name, asking.pick(wanted)[0])

    add_route(app, settings, pool)
    return app


class _Asking:
    """Reads requests, has them answered, and counts the answers."""

    def __init__(
        self,
        settings: InferenceSettings,
        name: str,
        model: VersionedModel,
        pool: ModelPool,
        generator: Generator,
        metrics: InferenceMetrics,
        counts: GenerationMetrics,
        offload: Offload,
    ) -> None:
        made_for = context_of(model.model) or settings.cache_tokens
        self.context = min(made_for, settings.cache_tokens)
        self._most = settings.max_tokens
        self._name = name
        self._prompts = Prompts(model.tokenizer)
        self._pool = pool
        self._generator = generator
        self._metrics = metrics
        self._counts = counts
        self._offload = offload

    def chat(self, body: bytes) -> tuple[ChatRequest, Ask]:
        """Read a chat. Call it off the event loop."""
        request = read_chat(body)
        try:
            prompt = self._prompts.of_chat([message.plain() for message in request.messages])
        except BadPrompt as error:
            raise Refused(400, str(error), "messages") from None
        return request, self._ask(request, prompt, "messages")

    def completion(self, body: bytes) -> tuple[CompletionRequest, Ask]:
        """Read a completion. Call it off the event loop."""
        request = read_completion(body)
        return request, self._ask(request, self._tokens(request.prompt), "prompt")

    def _tokens(self, prompt: str | list[Any]) -> list[int]:
        if not isinstance(prompt, str) and isinstance(prompt[0], str):
            if len(prompt) > 1:
                raise Refused(400, "one prompt in a request; ask for others beside it", "prompt")
            prompt = prompt[0]
        if isinstance(prompt, str):
            try:
                return self._prompts.of_text(prompt)
            except BadPrompt as error:
                raise Refused(400, str(error), "prompt") from None
        if not all(type(token) is int and 0 <= token < self._prompts.vocabulary for token in prompt):
            raise Refused(400, f"prompt: tokens are numbers from 0 to {self._prompts.vocabulary - 1}", "prompt")
        return prompt

    def _ask(self, request: ChatRequest | CompletionRequest, prompt: list[int], param: str) -> Ask:
        room = self.context - len(prompt)
        wanted = request.most
        if wanted is not None and wanted > self._most:
            raise Refused(400, f"max_tokens: at most {self._most} here (inference.max_tokens)", "max_tokens")
        if room < (wanted or 1):
            raise Refused(
                400,
                f"the model's context has {self.context} tokens; the prompt has {len(prompt)} and the answer may have "
                f"{wanted or 1}",
                param,
                "context_length_exceeded",
            )
        stops = () if request.stop is None else tuple(request.stop)
        return Ask(tuple(prompt), min(wanted or self._most, room), request.sampling, stops)

    def pick(self, asked: str) -> tuple[LoadedModel, Why]:
        """The version that answers where `asked` is the model."""
        number = asked.removeprefix(f"{self._name}:")
        named = number != asked and number.isascii() and number.isdigit() and len(number) < 19
        if asked != self._name and not named:
            raise Refused(404, f"there is no such model: ask for {self._name}", "model", "model_not_found")
        try:
            return self._pool.pick(int(number) if named else None)
        except NotLoaded as error:
            if self._pool.models:
                raise Refused(404, str(error), "model", "model_not_found") from None
            raise Refused(503, str(error)) from None

    async def answer(
        self,
        request: Request,
        read: Callable[[bytes], tuple[ChatRequest | CompletionRequest, Ask]],
        kind: type[Answers],
    ) -> Response:
        """Answer a request, whole or as a stream."""
        begun, version, status = perf_counter(), None, 500
        streams = False
        try:
            asked, ask = await self._offload.run(read, await request.body())
            held, why = self.pick(asked.model)
            version = held.version
            reply = self._begin(held, ask)
            answers = kind(model_name(self._name, held), f"{version}-{held.digest[:12]}", self._prompts.said)
            headers = {"X-Llmos-Version": str(version), "X-Llmos-Why": why.value}

            def ended(status: int) -> None:
                reply.leave()
                self._count(version, status, begun)

            if asked.stream:
                streams = True
                return _Stream(_events(reply, answers, asked.with_usage), ended, headers)
            try:
                body = await _while_there(request, reply, answers)
            finally:
                reply.leave()
            status = 200
            return JSONResponse(body, headers=headers)
        except Refused as refused:
            status = refused.status
            return error_answer(refused)
        except (Busy, GenerationFailed) as error:
            status = _status_of(error)
            return error_answer(Refused(status, str(error)))
        except Gone:
            status = _GONE
            return Response(status_code=status)
        finally:
            if not streams:
                self._count(version, status, begun)

    def _begin(self, model: LoadedModel, ask: Ask) -> Reply:
        try:
            return self._generator.ask(model, ask)
        except Busy as error:
            raise Refused(429, str(error)) from None

    def _count(self, version: int | None, status: int, begun: float) -> None:
        self._metrics.answered(version, status, None)
        self._counts.ended(perf_counter() - begun)


async def _while_there(request: Request, reply: Reply, answers: Answers) -> dict[str, Any]:
    """The whole answer. Whoever leaves before it is there is not answered."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        reply.leave()

    async def collect() -> dict[str, Any]:
        pieces = [piece async for piece in reply.pieces()]
        chosen = [piece.chosen for piece in pieces if piece.chosen is not None]
        text = "".join(piece.text for piece in pieces)
        return answers.whole(text, chosen, pieces[-1].finish or "stop", usage_of(reply))

    return await run_while(collect(), watch())


async def _events(reply: Reply, answers: Answers, with_usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream. An error that comes after its beginning is one of them."""
    for body in answers.begin():
        yield event(body)
    try:
        async for piece in reply.pieces():
            if _tells(piece):
                yield event(answers.piece(piece))
        if with_usage:
            yield event(answers.usage(usage_of(reply)))
        yield DONE
    except (Busy, GenerationFailed) as error:
        yield event(error_body(_status_of(error), str(error)))
        raise


def _status_of(error: Busy | GenerationFailed) -> int:
    return 503 if isinstance(error, Busy) else 500


def _tells(piece: Piece) -> bool:
    return bool(piece.text or piece.finish or (piece.chosen and piece.chosen.logprob is not None))


class _Stream(StreamingResponse):
    """A stream of events; `ended` gets the status once it has ended, whatever the reason."""

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[int], None], headers: dict[str, str]) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._ended = ended
        self._status = _GONE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended(self._status)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
            self._status = 200
        except (Busy, GenerationFailed) as error:
            self._status = _status_of(error)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _answer_errors(app: FastAPI) -> None:
    """Let every error have OpenAI's form."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)  # noqa: S101
        return error_answer(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"][1:]))[:128]
        return JSONResponse(error_body(422, f"{place}: {fault['msg']}", place or None), 422)


def _denied(denied: Denied) -> dict[str, Any]:
    return error_body(denied.status, denied.detail)


def _takes(kind: type[ChatRequest] | type[CompletionRequest]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    inside = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inside}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with what it refers to in the place of each reference."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in schema.items()}


def _newest(pool: ModelPool) -> list[LoadedModel]:
    return [pool.models[number] for number in sorted(pool.models, reverse=True)]


def _held(name: str, model: LoadedModel) -> dict[str, Any]:
    return {"id": model_name(name, model), "object": "model", "created": model.time_ms // 1000, "owned_by": name}


def _model(name: str, owner: str, pool: ModelPool) -> dict[str, Any]:
    choice = pool.serving
    made = 0 if choice is None else pool.models[choice.version].time_ms // 1000
    return {"id": name, "object": "model", "created": made, "owned_by": owner}
