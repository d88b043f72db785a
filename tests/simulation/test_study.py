"""The experiments of the study can be run as they stand on its page, and differ in what they are about alone."""

import tomllib
from typing import Any

import pytest

from llmos_stream.simulation import simulate
from llmos_stream.simulation.experiment import Experiment, make_experiment
from tests.docs.pages import DOCS, blocks_of

_FILES = {
    str(block.title): tomllib.loads(block.text) for block in blocks_of(DOCS / "study.md") if block.language == "toml"
}
_LENDING = {"task.entry": "llmos_stream.scenarios.lending:Lending", "task.options": {}, "simulation.metric": "auc"}


def _experiment(name: str, overrides: dict[str, object]) -> Experiment:
    values: dict[str, Any] = dict(_FILES[name])
    return make_experiment(values, values.pop("arms"), overrides=overrides)


def test_both_populations_have_the_same_work() -> None:
    assert set(_FILES) == {"devices.toml", "silos.toml"}
    devices, silos = (_FILES[name] for name in ("devices.toml", "silos.toml"))
    assert {name: devices[name] for name in ("task", "client")} == {name: silos[name] for name in ("task", "client")}


@pytest.mark.parametrize("task", [{}, {"task.options": "model=convnet"}, _LENDING], ids=["mlp", "convnet", "lending"])
@pytest.mark.parametrize("name", sorted(_FILES))
def test_it_runs(name: str, task: dict[str, object]) -> None:
    experiment = _experiment(name, {"simulation.updates": 20, **task})
    assert experiment.seeds == range(6000, 6020), "none by which anything was chosen"
    for arm in experiment.arms:
        per_version = arm.settings.aggregation.buffer_size or (1 if arm.name == "fedasync" else 4)
        assert arm.settings.evaluator.every * per_version == 20, "all arms are measured after as many updates"
    found = simulate(experiment.arms[0], 1)
    assert found.updates == 20
    assert found.training.startswith("many at once"), "else the study takes hours"
    assert 0 < found.points[-1].metrics[experiment.arms[0].settings.simulation.metric] <= 1
