"""A tiny model in a folder, texts of a site, and the task over them."""

import json
from pathlib import Path
from typing import Any

from llmos_stream.config import Settings, load
from llmos_stream.training.llm.task import LlmTask

SENTENCES = (
    "the state of the union is strong and the people are free",
    "we shall build roads and schools in every state of the union",
    "peace with all nations and commerce with all who wish it",
    "the treasury holds more gold than it held a year ago",
    "congress may in its wisdom pass the law that I propose",
)


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_texts(path: Path, count: int = 40, skip: int = 0) -> str:
    """Texts of three sentences each."""
    some = [SENTENCES[(place * 3 + skip) % 5 :] + SENTENCES[: place % 3] for place in range(count)]
    return write_lines(path, [{"text": ". ".join(sentences[:3])} for sentences in some])


def llm_settings(
    model: Path | str, data: str | None = None, *, lora: dict[str, Any] | None = None, **options: Any
) -> Settings:
    """Settings of the task, for sequences of 16 tokens."""
    client = {"batch_size": 4, "lr": 0.01} | ({} if data is None else {"data": data})
    given = {"model": str(model), "sequence": 16, "lora": lora or {}} | options
    return load({"task": {"entry": "llm", "options": given}, "client": client})


def llm_task(model: Path | str, data: str | None = None, **options: Any) -> LlmTask:
    settings = llm_settings(model, data, **options)
    return LlmTask(settings.task, settings.client)
