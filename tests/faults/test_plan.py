"""Plans follow from their seeds, and chance leaves nothing out."""

import pytest

from tests.faults.plan import AGGREGATOR, BROKER, CODECS, KILLS, MODELS, SCENARIOS, Fault, plan_of, versions_of

SEEDS = range(400)
HELD = {Fault.REORDER, Fault.DELAY}


def test_a_seed_always_makes_the_same_plan() -> None:
    assert [plan_of(seed) for seed in SEEDS] == [plan_of(seed) for seed in SEEDS]


def test_every_fault_scenario_and_codec_comes_up() -> None:
    plans = [plan_of(seed) for seed in SEEDS]
    assert {point.fault for plan in plans for point in plan.points} == set(Fault)
    assert {plan.scenario for plan in plans} == set(SCENARIOS)
    assert {plan.codec for plan in plans} == {*CODECS, "topk2"}
    assert {(plan.model, plan.fragments) for plan in plans} == {
        ("whole", 1),
        *((model, count) for model in MODELS if model != "whole" for count in (2, 3, 4)),
    }
    assert {len(plan.points) for plan in plans} == {1, 2, 3}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_is_asked_for_is_that_of_every_plan(model: str) -> None:
    plans = [plan_of(seed, model) for seed in SEEDS]
    assert {plan.model for plan in plans} == {model}
    drawn = [plan for plan in map(plan_of, SEEDS) if plan.model == model]
    assert len(drawn) > len(SEEDS) // 10
    assert [plans[plan.seed] for plan in drawn] == drawn


def test_points_name_whom_they_can_strike() -> None:
    for plan in map(plan_of, SEEDS):
        plan.settings("f", "127.0.0.1:1")
        assert {point.role for point in plan.points} <= {AGGREGATOR, BROKER, *plan.names}
        for name in plan.names:
            mine = {point.fault for point in plan.points if point.role == name}
            assert not (mine & HELD and mine & KILLS), "what the harness holds back would die with the client"


def test_updates_that_leave_a_buffer_unfinished_make_no_plan() -> None:
    assert versions_of("fedbuff-adam", 6) == 2
    assert versions_of("fedbuff-deadline", 7) is None
    with pytest.raises(ValueError, match="unfinished"):
        versions_of("fedbuff-adam", 7)
