"""The sensors: nothing is learnt from the future or from a label, and a score means the same at every node."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from llmos_stream.errors import TaskError
from llmos_stream.scenarios import SCENARIOS, run_study, sensors
from llmos_stream.scenarios.page import render_page
from llmos_stream.scenarios.sensors import SITES, Density, Sensors
from llmos_stream.scenarios.site_task import Split
from llmos_stream.scenarios.summary import lines
from tests.scenarios.small import settings_of


def _task(seed: int = 0, **options: object) -> Sensors:
    settings = settings_of("sensors").changed(task={"seed": seed, "options": options})
    return Sensors(settings.task, settings.client)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table in which the change after reading i is i + 0.5 units of humidity; every second reading is an anomaly."""
    rows = [
        {"mote_id": site[-1], "humidity": str(0.05 * i * i), "temperature": "20", "label": str(i % 2)}
        for site in SITES
        for i in range(3000)
    ]
    monkeypatch.setattr(sensors, "read_table", lambda _: rows)
    sensors._split.cache_clear()
    yield
    sensors._split.cache_clear()


def _readings(inputs: Tensor) -> list[range]:
    """Which readings are in each window of the numbered table."""
    return [range(first, first + 4) for first in inputs[:, 0].floor().int().tolist()]


@pytest.mark.usefixtures("numbered")
@pytest.mark.parametrize("minutes", [5, 30, 180])
def test_what_is_learnt_is_past_and_no_window_is_in_two_parts(minutes: int) -> None:
    for site in SITES:
        parts = _task(minutes=minutes).split(site)
        windows = [_readings(part.inputs) for part in parts]
        train, validation, test = ({one for window in some for one in window} for some in windows)
        assert max(train) < min(validation) <= max(validation) < 2200 == min(test)
        assert max(test) == 2999
        assert (len(train), len(validation)) == (9 * minutes, 3 * minutes)
        assert train | validation == set(range(min(train), max(validation) + 1))
        for part, some in zip(parts, windows, strict=True):
            assert part.targets.tolist() == [window[-1] % 2 for window in some], "the newest reading says what it is"


@pytest.mark.usefixtures("numbered")
def test_a_seed_says_when_each_node_watched() -> None:
    def begins(seed: int) -> list[int]:
        task = _task(seed)
        return [_readings(task.split(site).train.inputs)[0][0] for site in SITES]

    assert begins(0) == begins(0) != begins(1)
    assert len(set(begins(0))) == 4


def test_no_node_learns_from_an_anomaly_and_two_never_have_one() -> None:
    splits: dict[str, Split] = {site: _task(minutes=180).split(site) for site in SITES}
    assert not any(split.train.targets.any() or split.validation.targets.any() for split in splits.values())
    found = {site: int(split.test.targets.sum()) for site, split in splits.items()}
    assert found == {"indoors 1": 117, "indoors 2": 0, "outdoors 3": 0, "outdoors 4": 32}


def test_no_label_has_a_part_in_training() -> None:
    outputs = torch.tensor([1.0, 2.0, 6.0])
    said = [float(_task().loss(outputs, torch.full((3,), label))) for label in (0, 1)]
    assert said == [3.0, 3.0]


def test_a_score_is_the_negative_log_likelihood_of_a_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Density()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    triangle = torch.eye(6) + model.turn.detach().tril(-1)
    precision = triangle.T @ torch.diag((2 * model.scale.detach()).exp()) @ triangle
    windows = 3 * torch.randn(20, 6, generator=generator)
    normal: Any = MultivariateNormal(model.mean.detach(), precision_matrix=precision)
    expected = -normal.log_prob(windows)
    assert torch.allclose(model(windows), expected, rtol=1e-4, atol=1e-4)


def test_what_has_learnt_nothing_is_the_sum_of_squares() -> None:
    windows = _task().split("outdoors 4").test.inputs
    assert torch.allclose(Density()(windows), windows.square().sum(dim=1) / 2 + 3 * math.log(2 * math.pi))


@pytest.mark.parametrize("options", [{"minutes": 4}, {"minutes": 181}, {"minutes": "many"}, {"hours": 1}])
def test_a_time_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="minutes=5 to minutes=180"):
        _task(**options)


def test_it_runs_and_what_cannot_be_measured_is_not_shown_as_a_number() -> None:
    scenario = replace(SCENARIOS["sensors"], seconds=4.0, pooled_epochs=1, alone_epochs=1)
    study = run_study(scenario, settings_of("sensors"), [0], lambda _: None, arms=["asynchronous"])
    (together,) = study.outcomes["asynchronous"]
    assert together.updates > 0
    assert together.at_home["nll"] < together.points[0].metrics["nll"], "nothing was learnt"
    assert 0.9 < together.at_home["average_precision"] < 1.0
    shown = {site: str(value) for site, value in lines(study)[-1].by_site.items()}
    assert shown["indoors 2"] == shown["outdoors 3"] == "-"
    assert "nan" not in render_page(study)
    chosen = run_study(scenario, settings_of("sensors"), [0], lambda _: None, "validation", ["asynchronous"])
    assert "nan" not in render_page(chosen), "no anomaly is there to measure by"
