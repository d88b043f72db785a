"""Each scenario learns, gives the same for the same seed, and its table says what the run measured."""

import math
from dataclasses import replace
from functools import cache
from statistics import mean, stdev

import pytest

from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.scenarios import SCENARIOS, Study, run_study
from llmos_stream.scenarios.page import render_page
from llmos_stream.scenarios.study import simulated
from llmos_stream.scenarios.summary import as_json, estimate, lines
from llmos_stream.simulation import simulate
from llmos_stream.simulation.experiment import Arm
from tests.scenarios.small import settings_of, small, studied

pytestmark = pytest.mark.xdist_group("study")  # one worker computes each study


@cache
def _once(name: str) -> Study:
    return studied(name)


@pytest.mark.parametrize("name", ["heart", pytest.param("lending", marks=pytest.mark.full)])
def test_the_federation_beats_its_sites_alone(name: str) -> None:
    study = _once(name)
    metric = study.scenario.metric
    alone, together = study.outcomes["alone"][0], study.outcomes["asynchronous"][0]
    assert together.everywhere[metric] > alone.everywhere[metric]
    first, last = together.points[0].metrics[metric], together.at_home[metric]
    assert last > first, "nothing was learnt"
    assert together.updates > study.outcomes["synchronous"][0].updates > 0


@pytest.mark.full
def test_the_same_seed_gives_the_same() -> None:
    again = studied("heart", arms=["asynchronous"])
    assert list(again.outcomes) == ["pooled", "asynchronous"]
    assert all(_once("heart").outcomes[arm] == outcomes for arm, outcomes in again.outcomes.items())
    assert again.outcomes["pooled"] != studied("heart", 2, arms=[]).outcomes["pooled"][1:]


def test_at_home_and_everywhere_differ_where_each_site_has_a_model_of_its_own() -> None:
    study = _once("heart")
    for arm in ("pooled", "synchronous", "asynchronous"):
        assert study.outcomes[arm][0].at_home == study.outcomes[arm][0].everywhere
    assert study.outcomes["alone"][0].at_home != study.outcomes["alone"][0].everywhere
    assert study.outcomes["personalised"][0].at_home != study.outcomes["personalised"][0].everywhere


def test_slow_sites_take_part_and_nobody_waits_for_them() -> None:
    study = _once("heart")
    rounds = study.scenario.seconds / 20.0
    assert study.outcomes["synchronous"][0].updates == 4 * rounds
    assert study.outcomes["asynchronous"][0].updates > 20 * rounds


def test_the_table_says_what_the_run_measured() -> None:
    study = studied("heart", 2, arms=["synchronous"])
    said = as_json(study)
    for line in lines(study):
        values = [one.at_home["accuracy"] for one in study.outcomes[line.arm]]
        assert line.at_home["accuracy"].mean == pytest.approx(mean(values))
        half_width = line.at_home["accuracy"].half_width
        assert half_width == pytest.approx(12.706 * stdev(values) / math.sqrt(2))
        assert [one["at_home"]["accuracy"] for one in said["arms"][line.arm]["seeds"]] == values
        assert f"<td>{line.at_home['accuracy']}</td>" in render_page(study)


def test_what_each_site_reached_makes_up_the_whole() -> None:
    study, task = _once("heart"), SCENARIOS["heart"].task(settings_of("heart").task, settings_of("heart").client)
    rows = [len(task.split(site).test.targets) for site in task.sites]
    for arm, (outcome,) in study.outcomes.items():
        found = [outcome.by_site[site] for site in task.sites]
        assert [one["num_examples"] for one in found] == rows
        for name in ("accuracy", "loss"):
            together = sum(one[name] * many for one, many in zip(found, rows, strict=True)) / sum(rows)
            assert outcome.at_home[name] == pytest.approx(together)
        said = as_json(study)["arms"][arm]
        assert said["by_site"]["Hungary"]["mean"] == said["seeds"][0]["by_site"]["Hungary"]["accuracy"]
        assert f"<td>{outcome.by_site['Hungary']['accuracy']:.3f}</td>" in render_page(study)


def test_less_may_be_better() -> None:
    scenario = replace(small("heart"), metric="loss", mode="min", near=0.03, shown=("loss",))
    study = run_study(scenario, settings_of("heart"), [0], lambda _: None, arms=["asynchronous"])
    near = study.outcomes["pooled"][0].at_home["loss"] + 0.03
    (outcome,) = study.outcomes["asynchronous"]
    losses = {point.seconds: point.metrics["loss"] for point in outcome.points}
    first = next(seconds for seconds, loss in losses.items() if loss <= near)
    assert outcome.reached == first > outcome.points[0].seconds
    assert as_json(study)["mode"] == "min"


def test_an_interval_is_that_of_student() -> None:
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([1.0]).half_width is None
    assert estimate([1.0, math.nan]).mean == 1.0
    assert math.isnan(estimate([]).mean)


def test_a_federation_is_what_the_simulator_makes_of_its_sites() -> None:
    study, scenario = _once("heart"), small("heart")
    settings = settings_of("heart").changed(task={"seed": 0, "entry": scenario.entry})
    own = scenario.task(settings.task, settings.client)
    arm = Arm("", simulated(scenario, settings, {site: own.split(site) for site in own.sites}), {})
    points = simulate(arm, 0).points  # measured by the product's evaluator, on the test rows of all sites
    shown = study.outcomes["asynchronous"][0].points
    assert [(one.seconds, one.version) for one in points] == [(one.seconds, one.version) for one in shown]
    assert [one.metrics["accuracy"] for one in points] == [one.metrics["accuracy"] for one in shown]


def test_settings_are_chosen_by_other_rows_than_the_table_is_about() -> None:
    chosen, shown = studied("heart", rows="validation", arms=["synchronous"]), _once("heart")
    for arm, (outcome,) in chosen.outcomes.items():
        (other,) = shown.outcomes[arm]
        assert outcome.updates == other.updates
        assert outcome.at_home["loss"] != other.at_home["loss"]
    assert "Validation rows" in render_page(chosen)
    assert (as_json(chosen)["rows"], as_json(shown)["rows"]) == ("validation", "test")


def test_what_a_clock_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"client\.local_steps"):
        studied("heart", settings=settings_of("heart").changed(client={"local_steps": 3}))


def test_a_site_that_there_is_not_is_refused_by_name() -> None:
    settings = settings_of("heart").changed(client={"data": "Vienna"})
    with pytest.raises(TaskError, match="no site 'Vienna', but Cleveland, Hungary"):
        SCENARIOS["heart"].task(settings.task, settings.client).train_batches()
