"""A tiny model in a folder, texts of a site, and the task over them."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from llmos_stream.config import Settings, load
from llmos_stream.training import Task, load_task
from llmos_stream.training.llm.adapters import NAME, adapted_layers
from llmos_stream.training.llm.task import LlmTask
from llmos_stream.training.local import LocalTrainer
from llmos_stream.training.shared_model import LocalModel, Trained

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


class Site:
    """One client's model, without any log."""

    def __init__(self, settings: Settings) -> None:
        self.task: Task = load_task(settings.task, settings.client)
        model = self.task.model()
        trainer = LocalTrainer(model, self.task.optimizer(model), self.task.loss, self.task.hooks())
        self.local = LocalModel(trainer, self.task.share)

    def train(self, weights: Tensor, version: int) -> Trained:
        self.local.trainer.optimizer = self.task.optimizer(self.local.model)
        return self.local.train(weights, version, [self.task.train_batches()])

    def products(self, weights: Tensor) -> dict[str, Tensor]:
        """What each adapted layer multiplies by at these weights, in float64; with E it is that."""
        self.local.load(weights)
        found = {}
        for name, layer in adapted_layers(self.local.model):
            base = layer.get_base_layer().weight.detach().double()
            a, b = (matrix[NAME].weight.detach().double() for matrix in (layer.lora_A, layer.lora_B))
            found[name] = base if hasattr(layer, "_exact") else base + layer.scaling[NAME] * b @ a
        return found
