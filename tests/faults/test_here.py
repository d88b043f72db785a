"""Faults on the in-process broker, with roles that share this process: every rule, and every point in a transaction."""

from pathlib import Path

import pytest

from tests.faults.plan import AGGREGATOR, CODECS, SCENARIOS, Fault, Plan, Point
from tests.faults.trials import Trial, try_here


async def _try(plan: Plan, folder: Path) -> Trial:
    trial = await try_here(plan, folder)
    assert trial.findings == []
    assert sorted(trial.outcome.struck) == sorted(plan.points)
    return trial


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("codec", CODECS)
async def test_an_aggregator_killed_in_a_version_and_a_client_in_an_update(
    scenario: str, codec: str, tmp_path: Path
) -> None:
    points = (
        Point(Fault.KILL_IN, AGGREGATOR, 3, 1),
        Point(Fault.KILL_CLIENT, "client-0", 2, 1),
        Point(Fault.DUPLICATE, "client-1", 1, 2),
    )
    await _try(Plan(1, scenario, codec, points=points), tmp_path)


@pytest.mark.parametrize(
    "points",
    [
        (Point(Fault.KILL_BEFORE, AGGREGATOR, 1),),
        (Point(Fault.KILL_BEFORE, AGGREGATOR, 4), Point(Fault.KILL_CLIENT_AFTER_SEND, "client-0", 5)),
        (Point(Fault.KILL_IN, AGGREGATOR, 1, 0), Point(Fault.DELAY, "client-1", 0, 3)),
        (Point(Fault.KILL_IN, AGGREGATOR, 2, 2), Point(Fault.KILL_IN, AGGREGATOR, 3, 0)),
        (Point(Fault.KILL_AFTER, AGGREGATOR, 1), Point(Fault.KILL_CLIENT, "client-1", 5, 0)),
        (Point(Fault.KILL_AFTER, AGGREGATOR, 3), Point(Fault.REORDER, "client-1", 2, 1)),
        (Point(Fault.HANG, AGGREGATOR, 3, 0),),
        (Point(Fault.HANG, AGGREGATOR, 3, 1), Point(Fault.DUPLICATE, "client-0", 0, 0)),
        (Point(Fault.HANG, AGGREGATOR, 2, 2), Point(Fault.DUPLICATE, "client-0", 1, 4)),
    ],
    ids=lambda points: "-".join(str(point.fault) for point in points),
)
async def test_a_fault_costs_time_and_nothing_else(points: tuple[Point, ...], tmp_path: Path) -> None:
    await _try(Plan(2, "fedbuff-momentum", "int8", partitions=2, points=points), tmp_path)


@pytest.mark.parametrize(
    ("scenario", "codec"),
    [
        ("fedbuff-momentum", "topk2"),
        pytest.param("fedbuff-sgd", "float32", marks=pytest.mark.full),
        pytest.param("fedbuff-adam", "int8", marks=pytest.mark.full),
        pytest.param("fedbuff-deadline", "int8", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("model", ["fragments", pytest.param("lora", marks=pytest.mark.full)])
async def test_fragments_and_what_is_carried_of_them(model: str, scenario: str, codec: str, tmp_path: Path) -> None:
    points = (
        Point(Fault.KILL_IN, AGGREGATOR, 2, 1),
        Point(Fault.KILL_CLIENT, "client-0", 2, 1),
        Point(Fault.KILL_CLIENT_AFTER_SEND, "client-1", 3),
        Point(Fault.DUPLICATE, "client-0", 1, 2),
    )
    await _try(Plan(7, scenario, codec, points=points, model=model, fragments=3), tmp_path)


async def test_an_old_base_is_known_after_two_restarts(tmp_path: Path) -> None:
    points = (
        Point(Fault.KILL_IN, AGGREGATOR, 2, 1),
        Point(Fault.KILL_AFTER, AGGREGATOR, 3),
        Point(Fault.DELAY, "client-0", 0, 5),  # an update on version 0 comes last of all
    )
    await _try(Plan(9, "fedasync", points=points), tmp_path)


async def test_the_last_version_ends_the_run_for_those_who_come_back_after_it(tmp_path: Path) -> None:
    points = (
        Point(Fault.KILL_AFTER, AGGREGATOR, 7),  # version 0 is the first
        Point(Fault.KILL_CLIENT_AFTER_SEND, "client-0", 5),
    )
    await _try(Plan(3, "fedbuff-sgd", ends=True, points=points), tmp_path)
