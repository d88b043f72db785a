"""What a site's files become: tokens, and which of them are to be learnt."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.errors import TaskError
from llmos_stream.training.llm.base import load_tokenizer, source_of
from llmos_stream.training.llm.texts import Example, read_examples
from tests.training.llm.aids import write_lines

_ASKED = {"role": "user", "content": "x"}


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(source_of(str(tiny)))


def _read(path: Path | str, tokenizer: Any, *, learn_all: bool = False) -> list[Example]:
    return list(read_examples(str(path), tokenizer, learn_all=learn_all))


def _learnt(example: Example, tokenizer: Any) -> str:
    chosen = [token for token, learnt in zip(example.tokens, example.learnt, strict=True) if learnt]
    return str(tokenizer.decode(chosen))


def test_of_a_text_all_is_learnt_up_to_its_end(tokenizer: Any, tmp_path: Path) -> None:
    (found,) = _read(write_lines(tmp_path / "a.jsonl", [{"text": "peace with all", "id": 3}]), tokenizer)
    assert tokenizer.decode(found.tokens) == "peace with all<|im_end|>"
    assert found.is_text
    assert all(found.learnt)


def test_of_a_prompt_and_its_completion_the_completion_is_learnt(tokenizer: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "what is it? ", "completion": "a road"}])
    (found,) = _read(path, tokenizer)
    assert tokenizer.decode(found.tokens) == "what is it? a road<|im_end|>"
    assert _learnt(found, tokenizer) == "a road<|im_end|>"
    assert not found.is_text
    (found,) = _read(path, tokenizer, learn_all=True)
    assert _learnt(found, tokenizer) == "what is it? a road<|im_end|>"


def test_of_a_chat_what_the_assistant_says_is_learnt(tokenizer: Any, tmp_path: Path) -> None:
    said = [("user", "hello"), ("assistant", "good day"), ("user", "and now?"), ("assistant", "peace")]
    messages = [{"role": role, "content": content} for role, content in said]
    (found,) = _read(write_lines(tmp_path / "a.jsonl", [{"messages": messages}]), tokenizer)
    assert tokenizer.decode(found.tokens) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert _learnt(found, tokenizer) == "good day<|im_end|>\npeace<|im_end|>\n"
    # what comes before an answer is, token by token, what the model is asked with
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    asked_tokens = tokenizer(asked, add_special_tokens=False).input_ids
    assert found.tokens[: len(asked_tokens)] == asked_tokens


def test_a_folder_is_all_files_in_it(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("roads")
    (tmp_path / ".hidden").write_text("not this")
    with gzip.open(tmp_path / "deep" / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "schools"}) + "\n\n" + json.dumps({"text": "gold"}) + "\n")
    found = [tokenizer.decode(one.tokens) for one in _read(tmp_path, tokenizer)]
    assert found == ["roads<|im_end|>", "schools<|im_end|>", "gold<|im_end|>"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"words": "x"}, "neither a text"),
        ({"prompt": "x"}, "neither a text"),
        (["x"], "neither a text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the first message is the assistant's"),
        ({"messages": [{"content": "x"}]}, "message 0: it has no role and content"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]},
            "message 1: it has no role and content",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "message 0: it has no role and content"),
        ({"messages": ["x"]}, "message 0: it has no role and content"),
        ({"messages": []}, "it has no messages"),
    ],
)
def test_a_line_that_is_none_of_these_is_told_by_its_number(
    record: Any, why: str, tokenizer: Any, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "fine"}, record])
    with pytest.raises(TaskError, match=f"a.jsonl, line 2: .*{why}"):
        _read(path, tokenizer)


def test_a_line_that_is_no_json_and_a_file_that_is_no_text_are_told(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text"\n')
    with pytest.raises(TaskError, match=r"a.jsonl, line 2"):
        _read(tmp_path / "a.jsonl", tokenizer)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TaskError, match=r"b.txt cannot be read"):
        _read(tmp_path / "b.txt", tokenizer)
    with pytest.raises(TaskError, match="no file or folder"):
        _read(tmp_path / "absent", tokenizer)


def test_what_unicode_calls_an_end_of_a_line_ends_none(tokenizer: Any, tmp_path: Path) -> None:
    """JSON may hold these characters as they are, and texts of the web do."""
    texts = ["one\u2028two", "three\u2029four", "five\x85six"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as Windows writes it
    written = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "b.jsonl").write_text("\n".join(written))
    read = [_read(tmp_path / name, tokenizer) for name in ("a.jsonl", "b.jsonl")]
    assert read[0] == read[1]
    assert len(read[0]) == 3


def test_a_file_that_is_damaged_or_hostile_is_told(tokenizer: Any, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(json.dumps({"text": "peace " * 2000}).encode()))
    for name, content in {
        "flipped": bytes(packed[:20]) + b"\xff" * 8 + bytes(packed[28:]),
        "short": bytes(packed[:-12]),
        "other": b"no gzip",
    }.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(TaskError, match=rf"{name}\.jsonl\.gz cannot be read: "):
            _read(tmp_path / f"{name}.jsonl.gz", tokenizer)
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n' + "[" * 200_000)
    with pytest.raises(TaskError, match=r"deep\.jsonl, line 2: it is nested too deeply"):
        _read(tmp_path / "deep.jsonl", tokenizer)
