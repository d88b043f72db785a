"""The pure part of a replay: recorded rules, and updates told again under them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import NewVersion, Rule, State, Update, start, step
from llmos_stream.core.replay import Replay
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecId, CodecSpec, UpdateHead

NUMEL = 100
LAYOUT = bytes(32)


def _recorded(**sections: dict[str, object]) -> dict[str, object]:
    defaults = {
        "aggregation": AggregationSettings(),
        "staleness": StalenessSettings(),
        "server_optimizer": ServerOptimizerSettings(),
    }
    return {name: kind.model_dump(mode="json") | sections.get(name, {}) for name, kind in defaults.items()}


def _update(number: int, base: int) -> Update:
    delta = torch.randn(NUMEL, generator=torch.Generator().manual_seed(number))
    head = UpdateHead("a", number, base, 10 + number, LAYOUT, CodecSpec(CodecId.FLOAT32), 0, bytes(32))
    return Update(head, 0, number, delta)


def _state(rule: Rule) -> State:
    return start(torch.zeros(NUMEL), LAYOUT, rule=rule)


def test_a_rule_is_read_back_and_changed_where_asked() -> None:
    rule = Rule.of(_recorded(staleness={"kind": "hinge"}), {"aggregation": {"buffer_size": 9}})
    assert rule.staleness.kind == "hinge"
    assert rule.aggregation == AggregationSettings(buffer_size=9)
    assert Rule.of(_recorded()) != rule
    with pytest.raises(ValueError, match="buffer_size"):
        Rule.of(_recorded(), {"aggregation": {"buffer_size": 0}})


@pytest.mark.parametrize(
    "recorded", [{}, {"aggregation": 3}, _recorded(staleness={"kind": "of tomorrow"}), _recorded(staleness={"x": 1})]
)
def test_a_record_that_is_not_understood_is_refused(recorded: dict[str, object]) -> None:
    with pytest.raises(Rejected) as caught:
        Rule.of(recorded)
    assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({}, set()),
        ({"server_optimizer": {"momentum": 0.5}}, {"momentum"}),
        ({"server_optimizer": {"name": "yogi"}}, {"first_moment", "second_moment"}),
        ({"server_optimizer": {"name": "yogi"}, "aggregation": {"strategy": "fedasync"}}, set()),
    ],
)
def test_what_a_rule_remembers(sections: dict[str, dict[str, object]], names: set[str]) -> None:
    assert Rule.of(_recorded(**sections)).moments == names


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"buffer_size": 2, "clip_norm": 3.0}},
        {"aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "adam", "lr": 0.1}},
        {"aggregation": {"strategy": "fedasync"}},
    ],
)
def test_a_replay_under_the_same_rule_makes_the_bytes_that_steps_made(
    sections: dict[str, dict[str, object]],
) -> None:
    rule = Rule.of(_recorded(**sections))
    state, versions = _state(rule), [torch.zeros(NUMEL)]
    replay = Replay(0, torch.zeros(NUMEL))
    replay.follow(rule)
    for number in range(8):
        update = _update(number, max(0, state.version - number % 3))
        base: Tensor | None = versions[update.head.base_version] if replay.needs_base else None
        staleness = replay.stale(update, update.head.base_version, LAYOUT)
        state, effects = step(state, update, 0.0)
        contribution = effects[0].contribution  # type: ignore[union-attr]
        assert contribution.staleness == staleness
        # What the manifest says of weight and clip plays no part: the rule gives both anew.
        replay.fold(replace(contribution, weight=99.0, clip=0.5), update, staleness, base)
        if replay.full:
            replay.flush()
        if isinstance(effects[-1], NewVersion):
            versions.append(effects[-1].weights)
        assert (replay.version, replay.pending) == (state.version, state.pipeline.pending())
    assert torch.equal(replay.weights, versions[-1])


def test_moments_are_kept_where_the_optimiser_has_the_same_ones() -> None:
    adam = Rule.of(_recorded(server_optimizer={"name": "adam"}, aggregation={"buffer_size": 1}))
    yogi = Rule.of(_recorded(server_optimizer={"name": "yogi"}, aggregation={"buffer_size": 1}))
    sgd = Rule.of(_recorded(aggregation={"buffer_size": 1}))

    def told(*rules: Rule) -> Tensor:
        replay = Replay(0, torch.zeros(NUMEL))
        for number, rule in enumerate(rules):
            replay.follow(rule)
            assert replay.follows(rule)
            update = _update(number, number)
            state = _state(rule)
            _, (folded, _) = step(state, replace(update, head=replace(update.head, base_version=0)), 0.0)
            replay.fold(folded.contribution, update, 0)  # type: ignore[union-attr]
            replay.flush()
        return replay.weights

    afresh = Replay(1, told(adam))
    afresh.follow(yogi)
    update = _update(1, 1)
    _, (folded, _) = step(_state(yogi), replace(update, head=replace(update.head, base_version=0)), 0.0)
    afresh.fold(folded.contribution, update, 0)  # type: ignore[union-attr]
    afresh.flush()
    assert not torch.equal(told(adam, yogi), afresh.weights)
    assert torch.isfinite(told(adam, sgd, adam)).all()


def test_a_rule_cannot_change_over_a_buffer() -> None:
    one, other = Rule.of(_recorded()), Rule.of(_recorded(staleness={"kind": "constant"}))
    replay = Replay(0, torch.zeros(NUMEL))
    with pytest.raises(ValueError, match="no rule"):
        replay.stale(_update(0, 0), 0, LAYOUT)
    replay.follow(one)
    _, (folded,) = step(_state(one), _update(0, 0), 0.0)
    replay.fold(folded.contribution, _update(0, 0), 0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="flush before"):
        replay.follow(other)


def test_an_unknown_base_is_refused_by_fedasync() -> None:
    rule = Rule.of(_recorded(aggregation={"strategy": "fedasync"}))
    replay = Replay(5, torch.zeros(NUMEL))
    replay.follow(rule)
    _, (folded, _) = step(_state(rule), _update(0, 0), 0.0)
    with pytest.raises(Rejected) as caught:
        replay.fold(folded.contribution, _update(0, 0), 2)  # type: ignore[union-attr]
    assert caught.value.reason is Reason.UNKNOWN_BASE_VERSION
    with pytest.raises(Rejected):
        replay.stale(_update(0, 0), 6, LAYOUT)
