"""What the clients of a run learn: updates that follow from the plan, or what a tiny language model learns by LoRA."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.training import LocalTrainer, load_task
from llmos_stream.training.shared_model import LocalModel, Trained
from tests.faults import model
from tests.faults.plan import Plan

_SENTENCES = ("the log is the system of record", "a crash costs time, not data", "an update counts once")


class Site(Protocol):
    """One client's data and model."""

    layout: Layout

    def learn(self, number: int, version: int, start: Tensor) -> Trained:
        """Its `number`-th update: what training adds to `start`, on this version."""


def prepare(plan: Plan, folder: Path) -> None:
    """Write what the roles of a run read."""
    if plan.trains:
        language_models = import_module("llmos_stream.testing.language_models")  # which imports transformers
        language_models.write_tiny_model(plan.base_model(folder), _SENTENCES)
        lines = [json.dumps({"text": f"{sentence}. " * 3}) for sentence in _SENTENCES]
        plan.texts(folder).write_text("\n".join(lines))


def initial(plan: Plan, settings: Settings) -> Initial:
    """Version 0 of a run."""
    return initial_of(load_task(settings.task, settings.client), settings) if plan.trains else model.initial_of(plan)


def site_of(plan: Plan, name: str, settings: Settings, folder: Path) -> Site:
    """The site of the client of that name."""
    return LanguageSite(plan, name, settings, folder) if plan.trains else ScriptedSite(plan, name)


def learnt_of(plan: Plan, name: str, number: int, folder: Path) -> Tensor:
    """What a client has learnt for its `number`-th update (flat, the parameters)."""
    if not plan.trains:
        return model.delta_of(plan, name, number)
    learnt: Tensor = torch.load(_file(folder, name, number), weights_only=True)
    return learnt


class ScriptedSite:
    """See `Site`: its updates follow from the plan, whatever the version is."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.layout = model.layout_of(plan)
        self._plan, self._name = plan, name

    def learn(self, number: int, version: int, start: Tensor) -> Trained:
        examples = model.examples_of(self._plan, self._name, number)
        return Trained(model.delta_of(self._plan, self._name, number), version, examples, {"n": float(number)}, 0.0)


class LanguageSite:
    """See `Site`: it trains adapters, and leaves what they have learnt in a file for the judge."""

    def __init__(self, plan: Plan, name: str, settings: Settings, folder: Path) -> None:
        self._plan, self._name, self._folder = plan, name, folder
        self._task = load_task(settings.task, settings.client)
        made = self._task.model()
        self._local = LocalModel(LocalTrainer(made, self._task.optimizer(made), self._task.loss), self._task.share)
        self.layout = self._local.layout

    def learn(self, number: int, version: int, start: Tensor) -> Trained:
        self._local.trainer.optimizer = self._task.optimizer(self._local.model)
        trained = self._local.train(start, version, [self._task.train_batches()])
        torch.save(trained.delta, _file(self._folder, self._name, number))
        examples = model.examples_of(self._plan, self._name, number)
        return replace(trained, num_examples=examples, metrics={"n": float(number)}, seconds=0.0)


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / name / f"learnt-{number}.pt"
