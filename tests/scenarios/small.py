"""Scenarios at a size for tests."""

from collections.abc import Sequence
from dataclasses import replace

from llmos_stream.config import Settings
from llmos_stream.scenarios import SCENARIOS, Scenario, Study, run_study
from llmos_stream.scenarios.measuring import Rows
from llmos_stream.scenarios.study import ARMS


def settings_of(name: str) -> Settings:
    return Settings().changed(**SCENARIOS[name].defaults)


def small(name: str) -> Scenario:
    return replace(SCENARIOS[name], seconds={"heart": 100.0, "lending": 20.0}[name], pooled_epochs=4)


def studied(
    name: str, seeds: int = 1, settings: Settings | None = None, rows: Rows = "test", arms: Sequence[str] = ARMS
) -> Study:
    return run_study(small(name), settings or settings_of(name), range(seeds), lambda _: None, rows, arms)
