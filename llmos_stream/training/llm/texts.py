"""A site's texts: files of it, as examples of tokens of which some are to be learnt.

| what | form |
| --- | --- |
| `.jsonl`, `.jsonl.gz` | lines of `{"text": ...}`, `{"prompt": ..., "completion": ...}`, `{"messages": [...]}` |
| any other file, `.gz` or not | one text, in UTF-8 |
| a folder | all files in it and below, by name |

Messages are `{"role": ..., "content": ...}` and go through the chat template of the model. To be learnt is what the
`assistant` says, with the marks that end it; of a prompt and its completion, the completion and the end of the text.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from llmos_stream.errors import TaskError

_LINES = (".jsonl", ".jsonl.gz")


class Example(NamedTuple):
    """Tokens, of each whether it is to be learnt, and whether a sequence may begin in the midst of them (a text)."""

    tokens: list[int]
    learnt: list[bool]
    is_text: bool


def read_examples(place: str, tokenizer: Any, *, learn_all: bool) -> Iterator[Example]:
    """The examples of a file or a folder, in order.

    Args:
        place: Where they are.
        tokenizer: That of the model.
        learn_all: Whether prompts are to be learnt too.

    Raises:
        TaskError: There is no such file, or a line of it is none of these; the message names it.
    """
    texts = _Texts(tokenizer, learn_all)
    for path in _files(Path(place)):
        if not path.name.endswith(_LINES):
            yield texts.text(_content(path))
            continue
        # Not splitlines: JSON may hold what Unicode calls an end of a line, as it is.
        for number, line in enumerate(_content(path).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                yield texts.of(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise TaskError(f"{path}, line {number}: {error}") from None
            except RecursionError:
                raise TaskError(f"{path}, line {number}: it is nested too deeply") from None


class _Texts:
    def __init__(self, tokenizer: Any, learn_all: bool) -> None:
        self._tokenizer = tokenizer
        self._learn_all = learn_all
        self._begin = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def of(self, record: object) -> Example:
        match record:
            case {"messages": list(messages)}:
                return self.chat([_message(place, message) for place, message in enumerate(messages)])
            case {"prompt": str(prompt), "completion": str(completion)}:
                return self._joined([(prompt, False), (completion, True)], self._begin, self._end)
            case {"text": str(text)}:
                return self.text(text)
        raise ValueError("it has neither a text, nor a prompt and a completion, nor messages")

    def text(self, text: str) -> Example:
        tokens = [*self._begin, *self._tokens(text), *self._end]
        return Example(tokens, [True] * len(tokens), is_text=True)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        if not messages:
            raise ValueError("it has no messages")
        pieces: list[tuple[str, bool]] = []
        said = ""
        for place, message in enumerate(messages):
            answers = message["role"] == "assistant"
            if answers:
                said = self._add(pieces, said, self._rendered(messages[:place], begins=True), learnt=False)
            if answers or place == len(messages) - 1:
                said = self._add(pieces, said, self._rendered(messages[: place + 1]), learnt=answers)
        return self._joined(pieces, [], [])

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, begins: bool = False) -> str:
        if not messages:
            raise ValueError("the first message is the assistant's")
        try:
            return str(
                self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=begins)
            )
        except TemplateError as error:
            raise ValueError(f"the chat template does not take these messages ({error})") from None

    @staticmethod
    def _add(pieces: list[tuple[str, bool]], said: str, now: str, *, learnt: bool) -> str:
        if not now.startswith(said):
            raise ValueError("the chat template changes what was said before, so it is not known what to learn")
        pieces.append((now.removeprefix(said), learnt))
        return now

    def _joined(self, pieces: Sequence[tuple[str, bool]], begin: list[int], end: list[int]) -> Example:
        """Piece by piece, as a prompt and what is made of it are when the model answers."""
        tokens, learnt = list(begin), [False] * len(begin)
        for text, is_learnt in pieces:
            found = self._tokens(text)
            tokens += found
            learnt += [is_learnt or self._learn_all] * len(found)
        return Example(tokens + end, learnt + [True] * len(end), is_text=False)

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _message(place: int, message: Any) -> Mapping[str, Any]:
    """A message whose role and content the template can write: what it does not know, it may write as `None`."""
    match message:
        case {"role": str(), "content": str() | list()} | {"role": str(), "tool_calls": list()}:
            found: Mapping[str, Any] = message
            return found
    raise ValueError(f"message {place}: it has no role and content that are texts")


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not found:
            raise TaskError(f"client.data: the folder {place} holds no file")
        return found
    if not place.exists():
        raise TaskError(f"client.data: there is no file or folder {place}")
    return [place]


def _content(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read: {error}") from None
