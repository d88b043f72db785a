"""The transition function: what each update does to the state, and what it must not do."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import Duplicate, Effect, Folded, NewVersion, Refused, State, Update, next_deadline, step, tick
from llmos_stream.core.dedup import Sequences
from llmos_stream.core.validate import LARGEST_NORM
from llmos_stream.errors import Reason, StateError
from tests.core import oracles
from tests.core.builders import LAYOUT, fingerprint, same_bytes, start, update, versions

NAN, INF = math.nan, math.inf


def begin(**aggregation: Any) -> State:
    """Version 4 of a two-weight model, staleness at most 3, at most 100 examples."""
    return start(
        torch.tensor([1.0, -1.0]),
        LAYOUT,
        version=4,
        aggregation=AggregationSettings(max_num_examples=100, **aggregation),
        staleness=StalenessSettings(maximum=3),
        history={number: torch.full((2,), float(number)) for number in (2, 3)},
    )


REFUSED = [
    (update([1.0, 1.0], -1, base=4), Reason.MALFORMED),
    (update([1.0, 1.0], 2**63 - 1, base=4), Reason.SEQUENCE_AHEAD),
    (update([1.0, 1.0], 9, base=4, layout=b"other"), Reason.WRONG_LAYOUT),
    (update([1.0, 1.0, 1.0], 9, base=4), Reason.WRONG_LAYOUT),
    (update([], 9, base=4), Reason.WRONG_LAYOUT),
    (update([1.0, 1.0], 9, base=4, examples=0), Reason.BAD_NUM_EXAMPLES),
    (update([1.0, 1.0], 9, base=4, examples=101), Reason.BAD_NUM_EXAMPLES),
    (update([1.0, 1.0], 9, base=5), Reason.UNKNOWN_BASE_VERSION),
    (update([1.0, 1.0], 9, base=-1), Reason.UNKNOWN_BASE_VERSION),
    (update([1.0, 1.0], 9, base=0), Reason.TOO_STALE),
    (update([1.0, NAN], 9, base=4), Reason.NOT_FINITE),
    (update([-INF, 1.0], 9, base=4), Reason.NOT_FINITE),
    (update([3e38, 3e38], 9, base=4), Reason.NOT_FINITE),
]


@pytest.mark.parametrize(("bad", "reason"), REFUSED)
@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
def test_a_refused_update_changes_nothing_bit_for_bit(strategy: str, bad: Update, reason: Reason) -> None:
    state = begin(strategy=strategy)
    if strategy == "fedbuff":
        state, _ = step(state, update([0.5, 0.5], 0, base=4), now=0.0)
    assert isinstance(bad.delta, Tensor)
    before, delta = fingerprint(state), bad.delta.clone()
    state, effects = step(state, bad, now=1e9)
    (refused,) = effects
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert refused.head is bad.head
    assert (refused.partition, refused.offset) == (bad.partition, bad.offset)
    assert refused.detail
    assert fingerprint(state) == before
    assert same_bytes(bad.delta, delta)


def test_a_refused_update_may_be_sent_again_put_right() -> None:
    state = begin()
    state, _ = step(state, update([NAN, 0.0], 0, base=4), now=0.0)
    state, (effect,) = step(state, update([1.0, 0.0], 0, base=4), now=0.0)
    assert isinstance(effect, Folded)


def test_fedasync_refuses_a_base_it_does_not_hold_and_changes_nothing() -> None:
    state = begin(strategy="fedasync")
    before = fingerprint(state)
    state, (refused,) = step(state, update([1.0, 1.0], 0, base=1), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNKNOWN_BASE_VERSION
    assert fingerprint(state) == before


def test_a_duplicate_changes_nothing_and_says_where_it_stood() -> None:
    state = begin()
    state, _ = step(state, update([1.0, 1.0], 7, base=4), now=0.0)
    before, again = fingerprint(state), update([9.0, 9.0], 7, base=4)
    state, effects = step(state, again, now=1e9)
    assert effects == (Duplicate("ann", 7, again.partition, again.offset),)
    assert fingerprint(state) == before


def test_an_update_out_of_order_is_counted_once() -> None:
    state = begin(buffer_size=10)
    kinds = []
    for sequence in (3, 1, 2, 1, 3, 0):
        state, effects = step(state, update([1.0, 1.0], sequence, base=4), now=0.0)
        kinds.append(type(effects[0]))
    assert kinds == [Folded, Folded, Folded, Duplicate, Duplicate, Folded]


def test_a_buffer_becomes_a_version_when_it_is_full() -> None:
    state = begin(buffer_size=2)
    first, second = update([2.0, 0.0], 0, base=4, examples=3), update([0.0, 2.0], 1, base=4)
    state, (folded,) = step(state, first, now=0.0)
    assert isinstance(folded, Folded)
    assert folded.contribution.offset == first.offset
    state, (also, version) = step(state, second, now=0.0)
    assert isinstance(also, Folded)
    assert isinstance(version, NewVersion)
    assert (version.number, version.parent) == (5, 4)
    assert version.manifest == (folded.contribution, also.contribution)
    assert version.weights.tolist() == pytest.approx([2.5, -0.5])
    assert (state.version, state.weights.data_ptr()) == (5, version.weights.data_ptr())


def test_a_buffer_becomes_a_version_at_its_deadline_but_not_before() -> None:
    state = begin(buffer_size=10, deadline_seconds=5.0)
    assert next_deadline(state) is None
    state, _ = step(state, update([1.0, 1.0], 0, base=4), now=100.0)
    state, _ = step(state, update([3.0, 3.0], 1, base=4), now=104.0)
    assert next_deadline(state) == 105.0
    state, effects = tick(state, now=104.9)
    assert effects == ()
    state, (version,) = tick(state, now=105.0)
    assert isinstance(version, NewVersion)
    assert version.weights.tolist() == pytest.approx([3.0, 1.0])
    assert next_deadline(state) is None


def test_an_empty_buffer_never_becomes_a_version() -> None:
    state = begin(deadline_seconds=5.0)
    before = fingerprint(state)
    state, effects = tick(state, now=1e12)
    assert effects == ()
    state, _ = step(state, update([1.0, 1.0], 0, base=4), now=0.0)
    state, _ = tick(state, now=5.0)
    state, effects = tick(state, now=1e12)
    assert effects == ()
    assert fingerprint(state) != before


def test_an_update_past_the_deadline_joins_the_buffer_that_it_releases() -> None:
    state = begin(buffer_size=10, deadline_seconds=5.0)
    state, _ = step(state, update([1.0, 1.0], 0, base=4), now=0.0)
    state, (_, version) = step(state, update([3.0, 3.0], 1, base=4), now=6.0)
    assert isinstance(version, NewVersion)
    assert len(version.manifest) == 2


def test_weights_handed_out_are_never_written_again() -> None:
    for strategy in ("fedbuff", "fedasync"):
        state = begin(strategy=strategy, buffer_size=2)
        handed: list[tuple[NewVersion, bytes]] = []
        for i in range(12):
            state, effects = step(state, update([1.0, 0.5], i, base=state.version), now=0.0)
            handed += [(e, e.weights.numpy().tobytes()) for e in effects if isinstance(e, NewVersion)]
        assert len(handed) == (6 if strategy == "fedbuff" else 12)
        assert all(version.weights.numpy().tobytes() == then for version, then in handed)
        assert len({version.weights.data_ptr() for version, _ in handed}) == len(handed)


def test_the_weights_it_started_from_are_never_written_to() -> None:
    weights = torch.tensor([1.0, -1.0])
    state = start(weights, LAYOUT, aggregation=AggregationSettings(buffer_size=1))
    versions(state, [update([1.0, 1.0], i, base=i) for i in range(3)])
    assert weights.tolist() == [1.0, -1.0]


def test_a_decoders_mistake_is_raised_and_changes_nothing() -> None:
    state = begin()
    before = fingerprint(state)
    with pytest.raises(ValueError, match="float32"):
        step(state, update(torch.zeros(2, dtype=torch.float64), 0, base=4), now=0.0)
    assert fingerprint(state) == before


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi", "adagrad"])
def test_the_longest_deltas_taken_leave_every_number_finite(name: str) -> None:
    state = start(
        torch.zeros(1),
        LAYOUT,
        aggregation=AggregationSettings(buffer_size=2, max_num_examples=2**64),
        server_optimizer=ServerOptimizerSettings.model_validate({"name": name}),
    )
    for i in range(20):
        longest = update([LARGEST_NORM * 0.999], i, base=state.version, examples=2**64 - 1)
        state, effects = step(state, longest, now=0.0)
        assert isinstance(effects[0], Folded)
    tensors = [state.weights, *state.pipeline.state_tensors().values()]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@pytest.mark.parametrize(
    ("weights", "version"),
    [(torch.zeros(0), 0), (torch.zeros(2), -1), (torch.zeros(2, 2), 0), (torch.zeros(2).int(), 0)],
)
def test_a_start_that_makes_no_sense_is_a_programming_error(weights: torch.Tensor, version: int) -> None:
    with pytest.raises(ValueError, match=r"needed|version is 0 or more"):
        start(weights, LAYOUT, version)


# A run that stopped and one that did not -------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi", "adagrad"])
def test_goes_on_from_what_is_remembered_as_if_never_stopped(name: str) -> None:
    rule = ServerOptimizerSettings.model_validate({"name": name, "momentum": 0.5 if name == "sgd" else 0.0})
    aggregation = AggregationSettings(buffer_size=2)
    state = start(torch.zeros(2), LAYOUT, aggregation=aggregation, server_optimizer=rule)
    versions(state, [update([1.0, 0.1 * i], i, base=0) for i in range(4)])
    moments = {name: tensor.clone() for name, tensor in state.pipeline.state_tensors().items()}
    sequences, limits = state.sequences.dump(), state.pipeline.limits.dump()
    later = [update([0.5, 0.5], 3, base=2), update([0.3, -0.5], 4, base=2), update([0.2, 0.2], 5, base=1)]
    weights = state.weights.clone()
    (straight,) = versions(state, later)
    resumed = start(
        weights,
        LAYOUT,
        2,
        aggregation=aggregation,
        server_optimizer=rule,
        moments=moments,
        sequences=sequences,
    )
    resumed.pipeline.limits.load(limits)
    (again,) = versions(resumed, later)
    assert same_bytes(straight.weights, again.weights)
    assert straight.manifest == again.manifest
    assert fingerprint(state) == fingerprint(resumed)


def test_a_version_names_the_moments_to_remember() -> None:
    rule = ServerOptimizerSettings(name="sgd", momentum=0.5)
    state = start(torch.zeros(2), LAYOUT, aggregation=AggregationSettings(buffer_size=1), server_optimizer=rule)
    (version,) = versions(state, [update([1.0, -2.0], 0, base=0)])
    assert {name: tensor.tolist() for name, tensor in version.moments.items()} == {"momentum": [1.0, -2.0]}


def test_moments_of_another_rule_are_refused() -> None:
    with pytest.raises(StateError, match="momentum"):
        start(torch.zeros(2), LAYOUT, 4, moments={"momentum": torch.zeros(2)})


# Against a whole federation in plain Python --------------------------------------------------------

sent = st.builds(
    oracles.Sent,
    client=st.sampled_from(["ann", "bob", "cat"]),
    sequence=st.integers(0, 12),
    base=st.integers(-2, 4),  # below the current version; -1 and -2 are versions to come
    examples=st.integers(1, 1000) | st.sampled_from([-1, 0, 1001]),
    delta=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2)
    | st.sampled_from([[1.0], [NAN, 0.0], [0.0, INF], [1.0, 1.0, 1.0]]),
    now=st.floats(0, 3),  # since the one before
)


@given(st.lists(sent, max_size=40), st.integers(1, 4), st.none() | st.floats(0.1, 2))
def test_a_run_of_good_and_bad_updates_and_deadlines(
    items: list[oracles.Sent], capacity: int, clip: float | None
) -> None:
    maximum = 3
    state = start(
        torch.zeros(2),
        LAYOUT,
        aggregation=AggregationSettings(
            buffer_size=capacity, deadline_seconds=5.0, clip_norm=clip, max_num_examples=1000
        ),
        staleness=StalenessSettings(maximum=maximum),
    )
    oracle = oracles.FedBuff(
        [0.0, 0.0], lambda tau: oracles.s("polynomial", tau, 0.5, 4), capacity, 5.0, maximum, 1000, clip
    )
    now = 0.0
    used: dict[tuple[str, int], int] = {}
    for item in items:
        now += item.now
        state, effects = tick(state, now)
        assert bool(effects) == oracle.tick(now)
        item.now = now
        # What is sent again is the same update, so it names the same base.
        item.base = used.setdefault((item.client, item.sequence), state.version - item.base)
        state, effects = step(state, update(item.delta, item.sequence, item.base, item.examples, item.client), now)
        outcome = oracle.fold(item)
        if outcome == "duplicate" and oracle.version - item.base > maximum and outcome_of(effects) == "too_stale":
            continue  # the client was forgotten, because its repeats are too stale by now
        assert outcome_of(effects) == outcome
        assert state.version == oracle.version
        assert state.weights.tolist() == pytest.approx(oracle.weights, abs=1e-5)
        assert len(state.sequences) <= min(3, (maximum + 1) * capacity)


def outcome_of(effects: tuple[Effect, ...]) -> str:
    match effects:
        case (Folded(), NewVersion()):
            return "version"
        case (Folded(),):
            return "folded"
        case (Duplicate(),):
            return "duplicate"
        case (Refused() as refused,):
            return str(refused.reason)
        case _:
            raise AssertionError(effects)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=40), st.integers(0, 3), st.integers(1, 3)
)
def test_what_versions_say_of_the_sequences_rebuilds_them(
    sent: list[tuple[str, int]], maximum: int, capacity: int
) -> None:
    """Keeping the latest window of each client, and dropping the tombstones, is all that a restart needs."""
    state = start(
        torch.zeros(2),
        LAYOUT,
        aggregation=AggregationSettings(buffer_size=capacity),
        staleness=StalenessSettings(maximum=maximum),
    )
    kept: dict[str, list[int]] = {}
    for client, sequence in sent:
        state, effects = step(state, update(torch.ones(2), sequence, state.version, 1, client), 0.0)
        for effect in effects:
            if isinstance(effect, NewVersion):
                kept |= {name: list(window) for name, window in effect.sequences.items() if window is not None}
                kept = {name: window for name, window in kept.items() if effect.sequences.get(name, window) is not None}
                assert kept == state.sequences.dump()
                assert Sequences.load(kept).dump() == kept
