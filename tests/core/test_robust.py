"""The rules that hold their updates, against slow oracles that see everything at once."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import Duplicate, Folded, NewVersion, Refused, Rule, State, Update, step, tick
from llmos_stream.core.flat import ROW
from llmos_stream.core.replay import Replay
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.types import Contribution
from tests.core import oracles
from tests.core.builders import head, rule_of, same_bytes, start, tensors_in, update, versions

Vector = list[float]
RULES = ["median", "trimmed_mean", "krum", "multi_krum", "norm_bound"]
VERSION = 9
vectors = st.lists(st.floats(-1, 1, width=32).map(lambda x: round(x, 3)), min_size=3, max_size=3)
sent = st.lists(st.tuples(vectors, st.integers(1, 10**6), st.integers(0, 9)), min_size=5, max_size=9)
Sent = tuple[Vector, int, int]


def settings(strategy: str, size: int, clip: float | None = None, **options: Any) -> AggregationSettings:
    fields = {"strategy": strategy, "buffer_size": size, "clip_norm": clip, "options": options}
    fields["one_of_a_client"] = False  # most updates here are of one client
    return AggregationSettings.model_validate(fields)


def version_of(strategy: str, items: Sequence[Sent], clip: float | None = None, **options: Any) -> NewVersion:
    """What a buffer of these updates becomes, on weights of 0."""
    state = start(torch.zeros(3), version=VERSION, aggregation=settings(strategy, len(items), clip, **options))
    (version,) = versions(state, [update(delta, i, VERSION - tau, n) for i, (delta, n, tau) in enumerate(items)])
    return version


def scaled(items: Sequence[Sent], clip: float | None) -> list[Vector]:
    """s(tau) c Delta of each."""
    return [[oracles.s("polynomial", tau, 0.5, 4) * x for x in oracles.clipped(delta, clip)] for delta, _, tau in items]


@given(sent, st.none() | st.floats(0.3, 2))
def test_the_median_is_that_of_each_coordinate(items: list[Sent], clip: float | None) -> None:
    expected = [statistics.median(column) for column in zip(*scaled(items, clip), strict=True)]
    version = version_of("median", items, clip)
    assert version.weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert [item.weight for item in version.manifest] == pytest.approx(
        [oracles.s("polynomial", tau, 0.5, 4) for _, _, tau in items]
    )


@given(sent, st.floats(0, 0.49), st.none() | st.floats(0.3, 2))
def test_the_trimmed_mean_leaves_the_ends_of_each_coordinate_out(
    items: list[Sent], beta: float, clip: float | None
) -> None:
    away = math.floor(beta * len(items))
    columns = [sorted(column)[away : len(items) - away] for column in zip(*scaled(items, clip), strict=True)]
    version = version_of("trimmed_mean", items, clip, beta=beta)
    assert version.weights.tolist() == pytest.approx([statistics.fmean(column) for column in columns], abs=1e-6)


def krum_order(items: Sequence[Sent], f: int, clip: float | None) -> tuple[list[int], list[float]]:
    """Blanchard et al. 2017, section 4, with all distances written out. Nearest first, and the scores."""
    deltas = [oracles.clipped(delta, clip) for delta, _, _ in items]
    scores = []
    for i, one in enumerate(deltas):
        others = sorted(
            math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for j, other in enumerate(deltas) if j != i
        )
        scores.append(sum(others[: len(items) - f - 2]))
    return sorted(range(len(items)), key=scores.__getitem__), scores


def is_close_call(scores: Sequence[float], order: Sequence[int], chosen: int) -> bool:
    """Whether float32 could tell the last one chosen from the first one left out in another way."""
    if chosen == len(order):
        return False
    return math.isclose(scores[order[chosen - 1]], scores[order[chosen]], rel_tol=1e-4, abs_tol=1e-7)


@given(sent, st.data(), st.none() | st.floats(0.3, 2))
def test_krum_takes_the_one_with_the_nearest_neighbours(
    items: list[Sent], data: st.DataObject, clip: float | None
) -> None:
    f = data.draw(st.integers(0, (len(items) - 3) // 2))
    order, scores = krum_order(items, f, clip)
    version = version_of("krum", items, clip, f=f)
    (found,) = [place for place, item in enumerate(version.manifest) if item.weight]
    if is_close_call(scores, order, 1):
        assert scores[found] == pytest.approx(scores[order[0]], rel=1e-3, abs=1e-5)
    else:
        assert found == order[0]
    assert version.weights.tolist() == pytest.approx(scaled(items, clip)[found], abs=1e-6)


@given(sent, st.data(), st.none() | st.floats(0.3, 2))
def test_multi_krum_takes_the_mean_of_the_first_m(items: list[Sent], data: st.DataObject, clip: float | None) -> None:
    f = data.draw(st.integers(0, (len(items) - 3) // 2))
    m = data.draw(st.none() | st.integers(1, len(items) - f))
    order, scores = krum_order(items, f, clip)
    version = version_of("multi_krum", items, clip, f=f, m=m)
    chosen = len(items) - f if m is None else m
    found = [place for place, item in enumerate(version.manifest) if item.weight]
    assert len(found) == chosen
    if not is_close_call(scores, order, chosen):
        assert found == sorted(order[:chosen])
    parts = [scaled(items, clip)[place] for place in found]
    assert version.weights.tolist() == pytest.approx(
        [sum(column) / chosen for column in zip(*parts, strict=True)], abs=1e-6
    )


@given(sent, st.floats(0.1, 3), st.none() | st.floats(0.3, 2))
def test_the_bound_is_a_multiple_of_the_median_norm(items: list[Sent], multiple: float, clip: float | None) -> None:
    deltas = [oracles.clipped(delta, clip) for delta, _, _ in items]
    bound = multiple * statistics.median(map(oracles.norm, deltas))
    bounded = [oracles.clipped(delta, bound) if oracles.norm(delta) > bound else delta for delta in deltas]
    discounts = [oracles.s("polynomial", tau, 0.5, 4) for _, _, tau in items]
    expected = oracles.pseudo_gradient(bounded, [n for _, n, _ in items], discounts)
    version = version_of("norm_bound", items, clip, multiple=multiple)
    assert version.weights.tolist() == pytest.approx(expected, abs=1e-5)
    for item, (delta, _, _) in zip(version.manifest, items, strict=True):
        assert item.clip * oracles.norm(delta) <= bound * (1 + 1e-5) + 1e-12


HOSTILE = [([0.1 * i, 1.0, -1.0], 10, 0) for i in range(5)] + [([1e6, -1e6, 1e6], 10**9, 0)] * 2


@pytest.mark.parametrize(
    ("strategy", "options"), [("median", {}), ("trimmed_mean", {"beta": 0.3}), ("krum", {}), ("multi_krum", {"f": 2})]
)
def test_a_few_hostile_updates_move_it_no_further_than_honest_ones_do(strategy: str, options: dict[str, Any]) -> None:
    for order in itertools.islice(itertools.permutations(HOSTILE), 0, 5040, 700):
        found = version_of(strategy, order, **options).weights.tolist()
        assert 0 <= found[0] <= 0.4 + 1e-6
        assert found[1:] == pytest.approx([1.0, -1.0])


def test_a_long_update_weighs_no_more_than_the_bound() -> None:
    found = version_of("norm_bound", [([1.0, 0.0, 0.0], 1, 0)] * 4 + [([0.0, 1e9, 0.0], 1, 0)]).weights.tolist()
    assert found == pytest.approx([0.8, 0.2, 0.0])


def test_the_number_of_examples_plays_no_part_where_anybody_may_claim_any() -> None:
    for strategy in ("median", "trimmed_mean", "krum", "multi_krum"):
        some = version_of(strategy, [([float(i), 0.0, 1.0], 1 + 99 * i, 0) for i in range(5)])
        same = version_of(strategy, [([float(i), 0.0, 1.0], 1, 0) for i in range(5)])
        assert same_bytes(some.weights, same.weights)


NUMEL = 40 * ROW + 321


def flat(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def begin(strategy: str, clip: float | None = 200.0) -> State:
    return start(torch.ones(NUMEL), aggregation=settings(strategy, 5, clip))


def run(strategy: str) -> list[NewVersion]:
    return versions(begin(strategy), [one_of(i, flat(i) * (1 + i % 3)) for i in range(15)])


def one_of(i: int, delta: Tensor) -> Update:
    return Update(head(i, max(0, i // 5 - 1), 1 + 17 * i), 0, i, delta)


@pytest.mark.parametrize("strategy", RULES)
def test_same_bytes_and_the_same_choice_with_any_number_of_threads(strategy: str) -> None:
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(run(strategy))
    assert len(found[0]) == 3
    for other in found[1:]:
        assert [version.manifest for version in found[0]] == [version.manifest for version in other]
        assert all(same_bytes(a.weights, b.weights) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("strategy", RULES)
def test_a_manifest_and_its_deltas_rebuild_the_versions(strategy: str) -> None:
    weights = torch.ones(NUMEL)
    pipeline = rule_of(settings(strategy, 5)).pipeline(0, weights)
    for version in run(strategy):
        for item in version.manifest:
            pipeline.fold(item, flat(item.sequence) * (1 + item.sequence % 3), now=0.0)
        weights, manifest = pipeline.flush(version.number - 1, weights, recorded=True)
        assert manifest == version.manifest
        assert same_bytes(weights, version.weights)


@pytest.mark.parametrize("strategy", RULES)
def test_the_same_updates_told_again_make_the_same_bytes(strategy: str) -> None:
    rule, state = rule_of(settings(strategy, 5, 200.0)), begin(strategy)
    replay = Replay(0, torch.ones(NUMEL))
    replay.follow(rule)
    for i in range(15):
        item = update(flat(i), i, max(0, state.version - 1), 1 + i)
        staleness = replay.stale(item, item.head.base_version, item.head.layout_digest)
        state, effects = step(state, item, 0.0)
        folded = effects[0]
        assert isinstance(folded, Folded)
        replay.fold(folded.contribution, item, staleness)
        if replay.full:
            replay.flush()
    assert (state.version, replay.version) == (3, 3)
    assert same_bytes(state.weights, replay.weights)


@pytest.mark.parametrize("strategy", RULES)
def test_what_is_held_may_be_overwritten_by_whoever_decoded_it(strategy: str) -> None:
    expected, state, room, found = run(strategy), begin(strategy), torch.empty(NUMEL), []
    for i in range(15):
        room.copy_(flat(i) * (1 + i % 3))
        state, effects = step(state, Update(head(i, max(0, i // 5 - 1), 1 + 17 * i), 0, i, room), 0.0)
        found += [effect for effect in effects if isinstance(effect, NewVersion)]
        room.fill_(math.nan)
    assert all(same_bytes(a.weights, b.weights) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("strategy", RULES)
def test_nothing_is_held_once_a_version_is_made(strategy: str) -> None:
    state = begin(strategy)
    for i in range(5):
        assert len(tensors_in(state)) == 1 + i
        state, _ = step(state, update(flat(i), i), 0.0)
    assert len(tensors_in(state)) == 1


def voting(strategy: str, size: int = 4) -> AggregationSettings:
    return AggregationSettings.model_validate({"strategy": strategy, "buffer_size": size})


@pytest.mark.parametrize("strategy", RULES)
def test_a_client_has_one_vote_and_the_room_of_one_update(strategy: str) -> None:
    state = start(torch.ones(NUMEL), aggregation=voting(strategy))
    for name in ("a", "b", "c"):
        state, (folded,) = step(state, update(flat(ord(name)), client=name), 0.0)
        assert isinstance(folded, Folded)
    held = len(tensors_in(state))
    for sequence in range(1, 9):
        state, (refused,) = step(state, update(flat(0), sequence, client="a"), 0.0)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.ONE_A_ROUND
    assert len(tensors_in(state)) == held
    state, (again,) = step(state, update(flat(0), client="a"), 0.0)
    assert isinstance(again, Duplicate)  # as one is that waits and is read again
    state, effects = step(state, update(flat(1), client="d"), 0.0)
    version = effects[-1]
    assert isinstance(version, NewVersion)
    assert [item.client_id for item in version.manifest] == ["a", "b", "c", "d"]
    state, (folded,) = step(state, update(flat(2), 9, 1, client="a"), 0.0)
    assert isinstance(folded, Folded)


@pytest.mark.parametrize("strategy", RULES)
def test_a_version_says_whether_its_clients_had_one_vote_each(strategy: str) -> None:
    rule = rule_of(voting(strategy))
    record: Any = rule.record()
    assert record["aggregation"]["one_of_a_client"] is True
    assert Rule.of(record).strategy().one_of_a_client
    assert Rule.of(record).record() == record
    # One from before that was said lets a client hold several places, and a replay of it does so too.
    old = {**record, "aggregation": {k: v for k, v in record["aggregation"].items() if k != "one_of_a_client"}}
    assert Rule.of(old).record() == old == rule_of(settings(strategy, 4)).record()
    replay = Replay(0, torch.zeros(3))
    replay.follow(Rule.of(old))
    for i in range(4):
        item = update([float(i), 0.0, 1.0], i)
        replay.fold(Contribution("ann", i, 0, i, 1, 0, 1.0, 1.0, bytes(32)), item, 0)
    assert replay.full
    replay.flush()
    replay.follow(Rule.of(record))
    replay.fold(Contribution("ann", 4, 0, 4, 1, 0, 1.0, 1.0, bytes(32)), update([1.0, 0.0, 1.0], 4), 0)
    with pytest.raises(Rejected, match="waits for this version already"):
        replay.fold(Contribution("ann", 5, 0, 5, 1, 0, 1.0, 1.0, bytes(32)), update([1.0, 0.0, 1.0], 5), 0)


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync", "fednova"])
def test_other_rules_are_recorded_as_before(strategy: str) -> None:
    record: Any = rule_of(voting(strategy)).record()
    assert "one_of_a_client" not in record["aggregation"]
    asked: Any = rule_of(AggregationSettings(strategy=strategy, one_of_a_client=True)).record()
    assert Rule.of(asked).strategy().one_of_a_client


def test_a_server_optimiser_applies_what_a_robust_rule_makes() -> None:
    items = [update([float(i), 0.0, 1.0], i) for i in range(3)]
    optimizer = ServerOptimizerSettings(lr=0.5)
    (version,) = versions(start(torch.zeros(3), aggregation=settings("median", 3), server_optimizer=optimizer), items)
    assert version.weights.tolist() == [0.5, 0.0, 0.5]


def test_one_that_is_discounted_to_nothing_takes_no_part() -> None:
    staleness = StalenessSettings(kind="polynomial", a=1000.0)
    for strategy, expected in (("median", [2.0, 0.0, 0.0]), ("norm_bound", [1.0, 0.0, 0.0])):
        state = start(torch.zeros(3), version=VERSION, aggregation=settings(strategy, 2), staleness=staleness)
        items = [update([2.0, 0.0, 0.0], 0, VERSION), update([2.0, 5.0, 0.0], 1, 0)]
        (version,) = versions(state, items)
        assert version.weights.tolist() == pytest.approx(expected)
    state = start(torch.ones(3), version=VERSION, aggregation=settings("median", 1), staleness=staleness)
    (version,) = versions(state, [update([2.0, 5.0, 0.0], 1, 0)])
    assert version.weights.tolist() == [1.0, 1.0, 1.0]


def test_krum_waits_for_as_many_as_it_needs_whatever_the_deadline() -> None:
    state = start(torch.zeros(3), aggregation=settings("krum", 7, f=1))
    for i in range(4):
        state, _ = step(state, update([float(i), 0.0, 0.0], i), now=0.0)
        state, effects = tick(state, now=1e9)
        assert effects == ()
    state, effects = step(state, update([4.0, 0.0, 0.0], 4), now=1e9)
    assert isinstance(effects[-1], NewVersion)


@pytest.mark.parametrize(
    ("strategy", "size", "options", "message"),
    [
        ("krum", 4, {"f": 1}, "f 1 needs a buffer_size of at least 5, it is 4"),
        ("krum", 2, {}, "at least 3"),
        ("multi_krum", 7, {"f": 2, "m": 6}, "m 6 is more than"),
        ("trimmed_mean", 4, {"beta": 0.5}, "aggregation.options: beta: Input should be less than 0.5"),
        ("median", 4, {"beta": 0.1}, "aggregation.options: beta: there is no such setting"),
        ("norm_bound", 4, {"multiple": 0}, "multiple: Input should be greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    strategy: str, size: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(torch.zeros(3), aggregation=settings(strategy, size, **options))
