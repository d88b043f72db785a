"""FedAsync through `step`, against the formula with every model kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core import Folded, NewVersion, Refused, next_deadline, step, tick
from llmos_stream.errors import Reason, StateError
from tests.core import oracles
from tests.core.builders import LAYOUT, contribution, rule_of, same_bytes, start, tensors_in, update, versions

vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)
ASYNC = AggregationSettings(strategy="fedasync")


@given(
    vectors,
    st.lists(st.tuples(vectors, st.integers(0, 4)), min_size=1, max_size=12),
    st.floats(0.05, 1),
    st.none() | st.floats(0.1, 2),
)
def test_a_run_of_updates_on_old_and_new_bases(
    weights: list[float], sent: list[tuple[list[float], int]], alpha: float, clip: float | None
) -> None:
    state = start(
        torch.tensor(weights),
        LAYOUT,
        aggregation=AggregationSettings(strategy="fedasync", mixing=alpha, clip_norm=clip, clip_multiple=0.0),
        staleness=StalenessSettings(maximum=4),
    )
    oracle = oracles.FedAsync([weights], lambda tau: oracles.s("polynomial", tau, 0.5, 4), alpha, clip)
    for i, (delta, tau) in enumerate(sent):
        base = max(0, state.version - tau)
        oracle.fold(base, delta)
        state, effects = step(state, update(delta, i, base), now=0.0)
        folded, version = effects
        assert isinstance(folded, Folded)
        assert isinstance(version, NewVersion)
        assert version.manifest == (folded.contribution,)
        assert version.weights.tolist() == pytest.approx(oracle.models[-1], abs=1e-5)


def test_a_fresh_update_with_full_mixing_gives_the_clients_model() -> None:
    state = start(torch.tensor([0.1, 0.2]), LAYOUT, aggregation=AggregationSettings(strategy="fedasync", mixing=1.0))
    (version,) = versions(state, [update([0.3, -0.7])])
    assert same_bytes(version.weights, torch.tensor([0.3, -0.7]) + torch.tensor([0.1, 0.2]))


def test_the_clients_model_is_mixed_in_and_not_its_delta() -> None:
    state = start(torch.zeros(1), LAYOUT, aggregation=AggregationSettings(strategy="fedasync", mixing=0.5))
    first, second = versions(state, [update([8.0], 0), update([0.0], 1, base=0)])
    assert first.weights.item() == 4.0
    rate = 0.5 / 2**0.5
    assert second.weights.item() == pytest.approx((1 - rate) * 4.0)


def test_as_many_models_are_held_as_an_update_may_name() -> None:
    state = start(torch.zeros(3), LAYOUT, aggregation=ASYNC, staleness=StalenessSettings(maximum=2))
    for i in range(10):
        state, _ = step(state, update([1.0, 2.0, 3.0], i, base=i), now=0.0)
        assert len(tensors_in(state)) == min(i + 2, 3)
    state, effects = step(state, update([0.0, 0.0, 0.0], 10, base=8), now=0.0)
    assert isinstance(effects[-1], NewVersion)
    state, effects = step(state, update([0.0, 0.0, 0.0], 11, base=8), now=0.0)
    assert isinstance(effects[0], Refused)
    assert effects[0].reason is Reason.TOO_STALE


def test_after_a_restart_a_base_that_was_not_read_back_is_unknown() -> None:
    state = start(torch.zeros(1), LAYOUT, version=7, aggregation=ASYNC, history={6: torch.ones(1)})
    state, (refused,) = step(state, update([1.0], 0, base=5), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNKNOWN_BASE_VERSION
    (version,) = versions(state, [update([1.0], 0, base=6)])
    rate = 0.6 / 2**0.5
    assert version.weights.item() == pytest.approx(rate * 2.0)


def test_history_that_no_update_may_name_is_not_held() -> None:
    past = {number: torch.full((1,), float(number)) for number in range(12)}
    state = start(
        torch.zeros(1), LAYOUT, version=7, aggregation=ASYNC, staleness=StalenessSettings(maximum=2), history=past
    )
    assert sorted(tensor.item() for tensor in tensors_in(state)) == [0.0, 5.0, 6.0]


def test_history_of_another_model_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="2 elements are needed, not 3"):
        start(torch.zeros(2), LAYOUT, version=7, aggregation=ASYNC, history={6: torch.ones(3)})


def test_time_alone_does_nothing() -> None:
    state = start(torch.zeros(1), LAYOUT, aggregation=ASYNC)
    state, effects = tick(state, now=1e9)
    assert effects == ()
    assert next_deadline(state) is None


def test_a_version_for_each_update_is_kept_to() -> None:
    pipeline = rule_of(ASYNC).pipeline(0, torch.zeros(1))
    with pytest.raises(ValueError, match="empty buffer"):
        pipeline.flush(0, torch.zeros(1))
    pipeline.fold(contribution(1, 0.5), torch.ones(1), now=0.0)
    assert (pipeline.pending(), pipeline.due(now=0.0)) == (1, True)
    with pytest.raises(ValueError, match="flush before"):
        pipeline.fold(contribution(1, 0.5), torch.ones(1), now=0.0)


def test_moments_in_a_snapshot_are_another_rules() -> None:
    pipeline = rule_of(ASYNC).pipeline(0, torch.zeros(1))
    assert pipeline.state_tensors() == {}
    with pytest.raises(StateError, match="momentum"):
        pipeline.load({"momentum": torch.zeros(1)})
