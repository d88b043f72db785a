"""A model in fragments: each moves by itself, by the same rule, and nothing that waits is lost or counted twice."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import (
    Duplicate,
    Folded,
    NewVersion,
    Refused,
    Rule,
    State,
    Update,
    next_deadline,
    start,
    step,
    take_back,
    tick,
)
from llmos_stream.core.dedup import WINDOW, SequenceWindow
from llmos_stream.core.fragments import next_fragment
from llmos_stream.core.replay import Replay
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.types import Fragment, TensorKind, TensorSpec
from tests.core import oracles
from tests.core.builders import LAYOUT, head, same_bytes

MEASURED = TensorSpec("mean", (1,), "float32", TensorKind.BUFFER)
FRAGMENTS = (
    Fragment(0, 2, b"a" * 32),
    Fragment(2, 5, b"b" * 32),
    Fragment(5, 7, b"c" * 32, (MEASURED,)),
)
NUMEL, PARAMETERS = 7, 6
ADAM = {"name": "adam", "lr": 0.3}


def rule(optimizer: dict[str, object] | None = None, **aggregation: object) -> Rule:
    made = AggregationSettings.model_validate(
        {"fragments": 3, "buffer_size": 2, "deadline_seconds": 5.0, **aggregation}
    )
    return Rule(made, server_optimizer=ServerOptimizerSettings.model_validate(optimizer or {}))


def begin(made: Rule, weights: Tensor | None = None, version: int = 0, **rest: object) -> State:
    weights = torch.zeros(NUMEL) if weights is None else weights
    return start(weights, LAYOUT, version, rule=made, buffers=(MEASURED,), fragments=FRAGMENTS, **rest)  # type: ignore[arg-type]


def update(sequence: int, base: int = 0, client: str = "ann", place: int | None = None, examples: int = 1) -> Update:
    """An update of the fragment at `place`, by default that whose turn it is."""
    fragment = FRAGMENTS[sequence % 3 if place is None else place]
    values = torch.Generator().manual_seed(1000 * sequence + ord(client[0]))
    measured = sum(spec.numel for spec in fragment.buffers)
    delta = torch.randn(fragment.numel - measured, generator=values)
    its = replace(head(sequence, base, examples, client, fragment.digest), range=fragment.range)
    return Update(its, 0, 100 * sequence + ord(client[0]), delta, torch.full((measured,), float(sequence)))


def run(state: State, updates: list[Update], now: float = 0.0) -> tuple[State, list[NewVersion]]:
    made = []
    for item in updates:
        state, effects = step(state, item, now)
        assert isinstance(effects[0], Folded)
        made += [effect for effect in effects if isinstance(effect, NewVersion)]
    return state, made


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9, "nesterov": True}, ADAM, {"name": "yogi"}])
def test_each_fragment_moves_by_the_rule_and_nothing_else_does(optimizer: dict[str, object]) -> None:
    """Against one federation for each fragment, in float64: only the number of versions is what they have in common."""
    made_by = rule(optimizer, clip_multiple=0.0)  # deltas of one element are of very unequal lengths
    settings = made_by.server_optimizer
    fields = {name: getattr(settings, name) for name in ("name", "lr", "momentum", "beta1", "beta2", "epsilon")}
    servers = [oracles.Optimizer(**fields, nesterov=settings.nesterov) for _ in FRAGMENTS]
    weights, waiting = [0.0] * PARAMETERS, [list[tuple[list[float], int, float]]() for _ in FRAGMENTS]
    state, made = begin(made_by), 0
    for turn in range(24):
        client, place = "ab"[turn % 2], (turn * 5 // 3) % 3
        base = max(0, state.version - turn % 4)
        item = update(turn, base, client, place, examples=1 + turn % 3)
        before = state.weights.clone()
        waiting[place].append((item.delta.tolist(), item.head.num_examples, (1 + state.version - base) ** -0.5))  # type: ignore[union-attr]
        state, effects = step(state, item, 0.0)
        if len(waiting[place]) < 2:
            assert len(effects) == 1
            continue
        made += 1
        deltas, examples, discounts = map(list, zip(*waiting[place], strict=True))
        waiting[place].clear()
        fragment, version = FRAGMENTS[place], effects[1]
        assert isinstance(version, NewVersion)
        assert (version.range, version.number) == (fragment.range, made)
        here = slice(fragment.begin, min(fragment.end, PARAMETERS))
        weights[here] = servers[place].apply(weights[here], oracles.pseudo_gradient(deltas, examples, discounts))
        torch.testing.assert_close(state.weights[:PARAMETERS], torch.tensor(weights), rtol=1e-4, atol=1e-5)
        before[fragment.begin : fragment.end] = state.weights[fragment.begin : fragment.end]
        assert same_bytes(state.weights, before)
    assert made > 8
    assert state.weights[PARAMETERS] > 0  # buffers move with the last fragment


def test_one_fragment_is_the_whole_model_bit_for_bit() -> None:
    plain = Rule(AggregationSettings(buffer_size=2), server_optimizer=ServerOptimizerSettings.model_validate(ADAM))
    whole = (Fragment(0, NUMEL, LAYOUT, (MEASURED,)),)
    states = [start(torch.zeros(NUMEL), LAYOUT, rule=plain, buffers=(MEASURED,), fragments=cut) for cut in ((), whole)]
    for sequence in range(6):
        delta = torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(sequence))
        item = Update(head(sequence), 0, sequence, delta, torch.ones(1))
        found = [step(state, item, 0.0)[1] for state in states]
        assert len(found[0]) == len(found[1])
    assert states[0].version == 3
    assert same_bytes(states[0].weights, states[1].weights)
    assert "fragments" not in plain.record()["aggregation"]  # type: ignore[operator]
    assert Rule.of(rule().record()).aggregation.fragments == 3


def test_only_updates_of_a_fragment_are_folded() -> None:
    state = begin(rule())
    good = update(0)
    for bad in (
        replace(good.head, range=None, layout_digest=LAYOUT),
        replace(good.head, range=(0, 3)),
        replace(good.head, layout_digest=LAYOUT),
        replace(good.head, range=(2, 5)),
    ):
        state, effects = step(state, replace(good, head=bad), 0.0)
        assert isinstance(effects[0], Refused)
        assert effects[0].reason is Reason.WRONG_LAYOUT
    plain = start(torch.zeros(NUMEL), LAYOUT, rule=Rule(), buffers=(MEASURED,))
    _, effects = step(plain, good, 0.0)
    assert isinstance(effects[0], Refused)
    assert (effects[0].reason, state.pending) == (Reason.WRONG_LAYOUT, 0)
    assert "is not cut" in effects[0].detail


def test_each_fragment_has_a_deadline_of_its_own() -> None:
    state, _ = run(begin(rule()), [update(1, client="bob")], now=1.0)
    state, _ = run(state, [update(0)], now=0.5)
    assert next_deadline(state) == 5.5
    state, (first,) = tick(state, 7.0)
    state, (second,) = tick(state, 7.0)
    assert isinstance(first, NewVersion)
    assert isinstance(second, NewVersion)
    assert (first.range, second.range) == ((0, 2), (2, 5))
    assert (tick(state, 99.0)[1], next_deadline(state)) == ((), None)


@pytest.mark.parametrize("stopped", range(1, 12))
def test_what_waits_is_folded_again_after_a_restart_and_what_is_in_a_version_is_not(stopped: int) -> None:
    """Each client's window is remembered with a version without those of its updates that wait for another one."""
    sent = [update(number // 2, 0, "ab"[number % 2], place) for number, place in enumerate((0, 1, 1, 0, 2, 2) * 2)]
    state, made = run(begin(rule(ADAM)), sent[:stopped])
    newest = made[-1] if made else None
    sequences: dict[str, list[int]] = {}
    for version in made:
        for client, window in version.sequences.items():
            assert window is not None
            sequences[client] = list(window)
    if newest is None:
        again = begin(rule(ADAM))
    else:
        moments = {name: moment.clone() for name, moment in newest.moments.items()}
        again = begin(rule(ADAM), newest.weights.clone(), newest.number, moments=moments, sequences=sequences)
    counted = {(item.client_id, item.sequence) for version in made for item in version.manifest}
    for item in sent:  # all are read again
        again, effects = step(again, item, 0.0)
        is_known = (item.head.client_id, item.head.sequence) in counted
        assert isinstance(effects[0], Duplicate if is_known else Folded)
    straight, _ = run(state, sent[stopped:])
    assert straight.version == again.version == 6
    assert again.pending == straight.pending == 0


def test_a_window_without_some_sequences_still_refuses_all_that_it_refused() -> None:
    window = SequenceWindow()
    for sequence in (3, 4, 7, 900, 1500):
        window.add(sequence, version=2)
    for left_out in ((), (1500,), (900,), (900, 1500), (1000,)):
        found = window.without(left_out)
        assert found is not None
        for sequence in range(1501):
            assert found.seen(sequence) == (window.seen(sequence) and sequence not in left_out), (left_out, sequence)
        assert SequenceWindow.load(found.dump()).highest == found.highest
    late = SequenceWindow(1 << 47, 0b101)  # as one that began with a clock's milliseconds
    assert late.without([1 << 47]).dump()[0] == (1 << 47) - 2  # type: ignore[union-attr]
    alone = SequenceWindow()
    alone.add(5)
    assert alone.without([5]) is None
    alone.add(5 + 2 * WINDOW)
    far = alone.without([5 + 2 * WINDOW])
    assert far is not None
    assert far.seen(5)
    assert not far.seen(5 + 2 * WINDOW)


def test_a_version_that_is_taken_back_leaves_what_waits_for_others() -> None:
    state, _ = run(begin(rule(ADAM)), [update(0), update(1)])
    before = state.weights.clone()
    state, (bad,) = run(state, [update(0, client="bob")])
    fresh = {name: torch.zeros(PARAMETERS) for name in bad.moments}
    state = take_back(state, before, fresh, bad.range)
    assert (state.version, state.pending) == (0, 1)
    assert same_bytes(state.weights, before)
    straight, _ = run(begin(rule(ADAM)), [update(1)])
    for each in (straight, state):
        each.pipeline.load(fresh)
    (one, other) = (run(each, [update(1, client="bob")])[1][0] for each in (straight, state))
    assert same_bytes(one.weights, other.weights)
    assert one.range == other.range == (2, 5)


def test_a_replay_makes_the_same_bytes_from_manifests_and_from_the_rule() -> None:
    made = rule(ADAM)
    state, sent = begin(made), {}
    recorded, anew = (Replay(0, torch.zeros(NUMEL), None, (MEASURED,), lambda count: FRAGMENTS) for _ in range(2))
    recorded.follow(made)
    anew.follow(made)
    versions = 0
    for turn in range(20):
        item = update(turn // 2, max(0, state.version - 1), "ab"[turn % 2], (turn * 7 // 4) % 3)
        sent[item.head.client_id, item.head.sequence] = item
        state, effects = step(state, item, 0.0)
        if len(effects) == 1:
            continue
        (_, version), versions = effects, versions + 1
        assert isinstance(version, NewVersion)
        for entry in version.manifest:
            its = sent[entry.client_id, entry.sequence]
            recorded.fold_again(entry, its)
            staleness = anew.stale(its, version.number - 1 - entry.staleness, LAYOUT)
            assert staleness == entry.staleness
            anew.fold(entry, its, staleness)
        for replay in (recorded, anew):
            assert replay.full
            replay.flush()
            assert (replay.version, replay.moved) == (version.number, version.range)
            assert same_bytes(replay.weights, version.weights)
    assert versions > 5


def test_memory_and_sums_are_those_of_a_fragment() -> None:
    state, _ = run(begin(rule()), [update(1)])
    sums = [pipeline._sum._total for pipeline in state.pipelines]
    assert [None if total is None else total.numel() for total in sums] == [None, 3, None]


@pytest.mark.parametrize(
    ("aggregation", "optimizer", "what"),
    [
        ({"strategy": "fedasync"}, {}, "mixes whole models"),
        ({"strategy": "fedavg"}, {}, "makes rounds"),
        ({}, {"name": "delayed_nesterov", "momentum": 0.9}, "counts versions"),
        ({"strategy": "fednova"}, {}, "counts the local steps of one training"),
    ],
)
def test_rules_that_need_whole_models_say_so(
    aggregation: dict[str, object], optimizer: dict[str, object], what: str
) -> None:
    with pytest.raises(ConfigError, match=f"aggregation.fragments: .*{what}"):
        begin(rule(optimizer, **aggregation))
    recorded = Rule.of(rule(optimizer, **aggregation).record())
    with pytest.raises(Rejected, match=what):
        begin(recorded)


def test_fragments_have_time_to_take_turns() -> None:
    short = replace(rule(), staleness=StalenessSettings(maximum=5))
    with pytest.raises(ConfigError, match=r"staleness\.maximum is 5; raise it to 6 at least"):
        begin(short)


def test_a_model_that_is_cut_otherwise_than_the_rule_says_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.fragments: 3 are wanted, and the model moves as a whole here"):
        start(torch.zeros(NUMEL), LAYOUT, rule=rule(), buffers=(MEASURED,))
    with pytest.raises(ConfigError, match="2 are wanted, and the model is cut into 3"):
        begin(rule(fragments=2))


def test_robust_rules_hold_the_updates_of_each_fragment() -> None:
    state = begin(rule(strategy="median", buffer_size=3))
    sent = [update(0, client=client, place=1) for client in ("ann", "bob", "cid")]
    state, (version,) = run(state, sent)
    middle = torch.stack([item.delta for item in sent]).median(0).values  # type: ignore[misc]
    torch.testing.assert_close(version.weights[2:5], middle)
    assert version.weights[:2].tolist() == [0.0, 0.0]


def test_how_many_make_a_version_must_be_said() -> None:
    with pytest.raises(ValueError, match="buffer_size: name how many updates of a fragment"):
        AggregationSettings(fragments=2)


def test_who_trains_on_one_version_sends_one_fragment_and_the_next_version_gives_the_next() -> None:
    assert next_fragment(None, [0, 0, 0]) == 0
    assert [next_fragment(moved, [0, 1, 2]) for moved in range(3)] == [1, 2, 0]
    assert next_fragment(0, [0]) == 0


@pytest.mark.parametrize("rhythm", [(0,), (0, 0, 2), (1, 0)])
def test_no_rhythm_of_a_client_leaves_a_fragment_out(rhythm: tuple[int, ...]) -> None:
    unsent, sent = [0, 0, 0], []
    for turn in range(60):
        place = next_fragment(rhythm[turn % len(rhythm)], unsent)
        unsent = [0 if other == place else count + 1 for other, count in enumerate(unsent)]
        sent.append(place)
        assert max(unsent) <= 3 * len(unsent)
    assert set(sent) == {0, 1, 2}


def test_what_waits_moves_before_it_could_be_too_stale_after_a_crash() -> None:
    made = replace(rule(deadline_seconds=99.0), staleness=StalenessSettings(maximum=7))
    state, _ = run(begin(made), [update(1, base=0)])
    for number in range(1, 6):
        place = 2 * (number % 2)
        assert next_deadline(state) == 99.0
        pair = [update(10 * number, number - 1, client, place) for client in ("ann", "bob")]
        state, _ = run(state, pair)
    assert next_deadline(state) == -math.inf
    state, (version,) = tick(state, 0.0)
    assert isinstance(version, NewVersion)
    assert (version.range, [item.sequence for item in version.manifest]) == ((2, 5), [1])
    assert state.floor == 0  # a repeat of it is known for what it is
    assert (tick(state, 0.0)[1], next_deadline(state)) == ((), None)


def test_limits_are_kept_for_each_fragment() -> None:
    state, _ = run(begin(rule()), [update(number, client=client) for number in range(6) for client in ("ann", "bob")])
    again = begin(rule())
    again.load_limits(state.dump_limits())
    assert [one.limits.dump() for one in again.pipelines] == [one.limits.dump() for one in state.pipelines]
    assert all(one.limits.dump().keys() == {"ann", "bob"} for one in state.pipelines)
    again.load_limits({"0": 7, "ann": [1.0, 1]})  # of a model that was not cut, or damaged
    whole = start(torch.zeros(NUMEL), LAYOUT, rule=Rule(), buffers=(MEASURED,))
    assert whole.dump_limits() == {}
