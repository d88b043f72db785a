"""The bodies of answers, whole or as the events of a stream, as OpenAI's clients read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any
from uuid import uuid4

import orjson

from llmos_stream.inference.generation.generator import Piece, Reply
from llmos_stream.inference.generation.sampling import Chosen
from llmos_stream.inference.model_pool import LoadedModel

DONE = b"data: [DONE]\n\n"
Say = Callable[[Sequence[int]], str]
"""Gives the text of tokens."""


def event(body: dict[str, Any]) -> bytes:
    """An event of a stream."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def usage_of(reply: Reply) -> dict[str, int]:
    """How many tokens a request has taken."""
    prompt, made = len(reply.ask.prompt), reply.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def model_name(name: str, model: LoadedModel) -> str:
    """A version as it is asked for."""
    return f"{name}:{model.version}"


@dataclass(frozen=True, slots=True)
class Answers:
    """Makes the bodies for one request. `model` is the version's name, and `fingerprint` names its weights."""

    model: str
    fingerprint: str
    say: Say
    made: int = field(default_factory=lambda: int(time()))
    id: str = field(default_factory=lambda: uuid4().hex)

    def whole(self, text: str, chosen: Sequence[Chosen], finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one body."""
        raise NotImplementedError

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A piece of a streamed answer, or its end."""
        raise NotImplementedError

    def begin(self) -> list[dict[str, Any]]:
        """What a streamed answer begins with."""
        return []

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """What a streamed answer ends with, where the usage is asked for."""
        return {**self.piece(Piece("", None)), "choices": [], "usage": usage}

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.made,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _text(self, token: int) -> str:
        return self.say([token])


class ChatAnswers(Answers):
    """Answers of `/v1/chat/completions`."""

    __slots__ = ()

    def whole(self, text: str, chosen: Sequence[Chosen], finish: str, usage: dict[str, int]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(chosen), "finish_reason": finish}
        return {**self._head("chatcmpl", "chat.completion"), "choices": [choice], "usage": usage}

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""}, None, None)]

    def piece(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or piece.chosen else {}
        return self._chunk(delta, self._logprobs([] if piece.chosen is None else [piece.chosen]), piece.finish)

    def _chunk(self, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chatcmpl", "chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        if not chosen or chosen[0].logprob is None:
            return None
        content = [
            {
                **self._logprob(one.token, one.logprob),
                "top_logprobs": [self._logprob(token, log) for token, log in one.likeliest],
            }
            for one in chosen
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, log: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": log, "bytes": list(text.encode())}


class CompletionAnswers(Answers):
    """Answers of `/v1/completions`."""

    __slots__ = ()

    def whole(self, text: str, chosen: Sequence[Chosen], finish: str, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._body(text, chosen, finish), "usage": usage}

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._body(piece.text, [] if piece.chosen is None else [piece.chosen], piece.finish)

    def _body(self, text: str, chosen: Sequence[Chosen], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": self._logprobs(chosen), "finish_reason": finish}
        return {**self._head("cmpl", "text_completion"), "choices": [choice]}

    def _logprobs(self, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        if not chosen or chosen[0].logprob is None:
            return None
        return {
            "tokens": [self._text(one.token) for one in chosen],
            "token_logprobs": [one.logprob for one in chosen],
            "top_logprobs": [{self._text(token): log for token, log in one.likeliest} for one in chosen],
            "text_offset": None,
        }
