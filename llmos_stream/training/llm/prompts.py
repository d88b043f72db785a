"""What a person asks, as tokens: in the same way in which the examples of training are made."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from llmos_stream.errors import LlmosError


class BadPrompt(LlmosError):
    """A prompt is not what the model takes."""


class Prompts:
    """Makes prompts with a model's own tokenizer and chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._begin = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self._empty = next(([token] for token in ends if token is not None), [])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self._tokenizer)

    def of_text(self, text: str) -> list[int]:
        """A text to be continued.

        Raises:
            BadPrompt: It is empty, and the model has no mark with which a text begins.
        """
        tokens = [*self._begin, *self._tokens(text)] or self._empty
        if not tokens:
            raise BadPrompt("the prompt is empty")
        return tokens

    def of_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Messages, each with its role and content, and the beginning of an answer.

        Raises:
            BadPrompt: The model has no chat template, or it does not take these messages.
        """
        if not self._tokenizer.chat_template:
            raise BadPrompt("the model has no chat template: ask /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadPrompt(f"the chat template does not take these messages ({error})") from None
        return self._tokens(text) or self.of_text("")

    def said(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the model's marks."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens with which an answer ends."""
    found: set[int] = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is not None:
        found |= set(configured) if isinstance(configured, list) else {configured}
    return frozenset(found)


def context_of(model: Any) -> int | None:
    """How many tokens the model was made for, prompt and answer together; None where it does not say."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
