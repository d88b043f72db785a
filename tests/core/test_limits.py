"""What one client may be at most: honest updates pass untouched, nobody outweighs the others, and a replay agrees."""

from dataclasses import replace

import pytest
import torch

from llmos_stream.config import AggregationSettings
from llmos_stream.core import NewVersion, Rule, State, Update, start, step
from llmos_stream.core.limits import LEAST, Limits
from llmos_stream.types import CodecId, CodecSpec, Contribution, UpdateHead

NUMEL = 32
DIGEST = b"x" * 32


class _Run:
    def __init__(self, **settings: object) -> None:
        rule = Rule(AggregationSettings.model_validate({"buffer_size": 4, "deadline_seconds": 1e9} | settings))
        self.state: State = start(torch.zeros(NUMEL), DIGEST, rule=rule)
        self.versions: list[NewVersion] = []
        self.weights: list[torch.Tensor] = []
        self._sent = 0

    def send(self, client: str, norm: float, num_examples: int = 100) -> None:
        delta = torch.full((NUMEL,), norm / NUMEL**0.5)
        head = UpdateHead(
            client, self._sent, self.state.version, num_examples, DIGEST, CodecSpec(CodecId.FLOAT32), 1, DIGEST
        )
        self.state, effects = step(self.state, Update(head, 0, self._sent, delta), 0.0)
        self._sent += 1
        for effect in effects:
            if isinstance(effect, NewVersion):
                self.versions.append(effect)
                self.weights.append(self.state.weights.clone())

    def rounds(self, count: int, *clients: tuple[str, float, int]) -> list[Contribution]:
        before = len(self.versions)
        while len(self.versions) < before + count:
            for client in clients:
                self.send(*client)
        return [item for version in self.versions[before:] for item in version.manifest]


HONEST = (("a", 1.0, 100), ("b", 1.5, 130), ("c", 0.7, 80), ("d", 1.1, 90))


def test_honest_updates_pass_untouched_and_the_formula_is_exact() -> None:
    """Also of clients as unequal as hospitals are, and of two of whom one has ten times the data."""
    for clients in (
        HONEST,
        (("a", 1.0, 100), ("b", 8.0, 250)),
        (("a", 0.3, 40), ("b", 2.0, 190), ("c", 1.0, 120), ("d", 0.5, 60), ("e", 1.4, 150)),
    ):
        run = _Run(buffer_size=len(clients))
        items = run.rounds(6, *clients)
        assert all(item.clip == 1.0 for item in items)
        assert {item.client_id: item.num_examples for item in items} == {name: count for name, _, count in clients}
        total = sum(count for _, _, count in clients)
        step_of = sum(norm * count for _, norm, count in clients) / total / NUMEL**0.5
        torch.testing.assert_close(run.weights[-1], torch.full((NUMEL,), 6 * step_of))


@pytest.mark.parametrize("num_examples", [10**9, 10**6, 401])
@pytest.mark.parametrize("norm", [9e14, 1e6, 1.0])
@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync", "median", "multi_krum"])
def test_nobody_outweighs_the_others(norm: float, num_examples: int, strategy: str) -> None:
    run = _Run(strategy=strategy)
    run.rounds(4, *HONEST)
    before = run.weights[-1]
    items = run.rounds(1, ("mallory", norm, num_examples), *HONEST[:3])
    mine = next(item for item in items if item.client_id == "mallory")
    assert norm * mine.clip <= 10 * 1.5
    if strategy != "fedasync":
        assert mine.num_examples <= sum(item.num_examples for item in items) / 2
    assert float((run.weights[-1] - before).norm()) <= 15.0


def test_a_client_that_grows_from_update_to_update_gets_nowhere() -> None:
    """Neither among many nor against one other."""
    for others in (HONEST[:3], HONEST[:1]):
        run = _Run(buffer_size=2)
        run.rounds(4, *others)
        for _ in range(60):
            run.rounds(1, ("mallory", 1e12, 10**9), others[0])
        limit = run.state.pipeline.limits
        assert limit.norm is not None
        assert limit.norm <= 100 * 1.5 * 1.01
        assert limit.examples is not None
        assert limit.examples <= 9 * 130


def test_a_version_records_the_limits_that_held_for_it() -> None:
    run = _Run()
    run.rounds(3, *HONEST)
    first, second, third = run.versions
    assert first.limits == {}
    assert second.limits == third.limits
    assert second.limits["norm"] == pytest.approx(10 * (1.0 * 1.1) ** 0.5)
    assert second.limits["examples"] == int(3 * (90 * 100) ** 0.5)


def test_what_is_remembered_survives_a_restart_and_nonsense_does_not() -> None:
    limits, again = Limits(AggregationSettings(), 4), Limits(AggregationSettings(), 4)
    for client, norm, count in HONEST:
        limits.note(client, norm, count)
    limits.renew()
    again.load(limits.dump() | {"e": [float("nan"), 5], "f": [1.0], "g": [1.0, -1], "h": ["x", 1]})
    assert again.record() == limits.record() != {}
    assert again.dump() == limits.dump()


def test_nothing_is_limited_at_first_nor_by_those_who_send_nothing() -> None:
    run = _Run()
    items = run.rounds(1, *HONEST[:3], ("e", 500.0, 10_000))
    assert all(item.clip == 1.0 for item in items)
    assert len(items) == LEAST
    still = _Run()
    still.rounds(3, *(replace_norm(client, 0.0) for client in HONEST))
    assert "norm" not in still.state.pipeline.limits.record()
    (item,) = still.rounds(1, ("a", 7.0, 100), *(replace_norm(client, 0.0) for client in HONEST[1:]))[:1]
    assert item.clip == 1.0


def replace_norm(client: tuple[str, float, int], norm: float) -> tuple[str, float, int]:
    return client[0], norm, client[2]


def test_settings_that_switch_it_off() -> None:
    run = _Run(clip_multiple=0.0, max_share=1.0)
    run.rounds(3, *HONEST)
    items = run.rounds(1, ("mallory", 1e6, 10**9), *HONEST[:3])
    assert (items[0].clip, items[0].num_examples) == (1.0, 10**9)


def test_a_rule_recorded_before_limits_holds_none() -> None:
    recorded = Rule().record()
    aggregation = {
        name: value
        for name, value in dict(recorded["aggregation"]).items()  # type: ignore[call-overload]
        if name not in {"clip_multiple", "max_share"}
    }
    found = Rule.of(recorded | {"aggregation": aggregation, "limits": {"norm": 1.0}}).aggregation
    assert (found.clip_multiple, found.max_share) == (0.0, 1.0)
    assert replace(Rule(), aggregation=found) != Rule()
