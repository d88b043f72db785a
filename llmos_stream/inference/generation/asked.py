"""The bodies of requests, as OpenAI's clients send them.

What the answer would not heed is refused by name, unless it is at the value that changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StrictInt, ValidationError

from llmos_stream.inference.generation.errors import Refused
from llmos_stream.inference.generation.sampling import Sampling

_Zero = Annotated[float, Field(ge=0, le=0)]
_MOST_MESSAGES = 4096
_MOST_PARTS = 64
_MOST_STOPS = 4


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Part(_Body):
    """A part of a message. Only texts are read."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """What one side has said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=_MOST_PARTS)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As the chat template takes it. `developer` is OpenAI's newer word for `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Body):
    """What a stream tells beside its pieces."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Body):
    model: Annotated[str, Field(max_length=512)]
    """The federation's name, or `name:12` for one version of it."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    """0: always the likeliest token. Unset: 1."""
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Draw from the likeliest tokens only that together have this probability. Unset: 1."""
    seed: Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed, prompt and version give the same answer, as far as rounding lets them."""
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256)]],
            Field(max_length=_MOST_STOPS),
            BeforeValidator(_listed),
        ]
        | None
    ) = None
    """Up to four strings before which the answer ends."""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """Most tokens of the answer. Unset: `inference.max_tokens`."""
    stream: bool | None = None
    """Answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    @property
    def most(self) -> int | None:
        """Most tokens of the answer, where the request says it."""
        return self.max_tokens

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        temperature, top_p = self.temperature, self.top_p
        return Sampling(
            1.0 if temperature is None else temperature, 1.0 if top_p is None else top_p, self.seed, self._likeliest()
        )

    def _likeliest(self) -> int | None:
        raise NotImplementedError


class ChatRequest(_Request):
    """A chat of which the next message is asked."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None
    """Tell the logarithm of each token's probability."""
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    """How many of the likeliest tokens are told with each."""
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """A text that is to be continued."""

    prompt: str | Annotated[list[Any], Field(min_length=1)]  # looked at one by one: a hostile one has many faults
    """A text, or its tokens. In a list there is one text."""
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    """How many of the likeliest tokens are told with each, with the logarithms of their probabilities."""
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    def _likeliest(self) -> int | None:
        return self.logprobs


def read_chat(body: bytes) -> ChatRequest:
    """Read the body of a chat.

    Raises:
        Refused: It is none.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None


def read_completion(body: bytes) -> CompletionRequest:
    """Read the body of a completion.

    Raises:
        Refused: It is none.
    """
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> Refused:
    """The first fault, without the value: it may be long, and is the asker's own."""
    fault: Mapping[str, Any] = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(step) for step in fault["loc"]]
    if not names:
        return Refused(400, f"the body is no such request: {fault['msg']}")
    if fault["type"] == "extra_forbidden":
        return Refused(400, f"{names[-1][:64]} is not supported here", ".".join(names)[:128], "unsupported_parameter")
    return Refused(400, f"{'.'.join(names)[:128]}: {fault['msg']}", names[0][:64])
