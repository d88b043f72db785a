"""Rounds of FedAvg through `step`: the first K clients on the newest version, and nobody else."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmos_stream.config import AggregationSettings
from llmos_stream.core import Folded, NewVersion, Refused, State, next_deadline, step, tick
from llmos_stream.errors import Reason
from tests.core import oracles
from tests.core.builders import fingerprint, start, tensors_in, update, versions

vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)
rounds = st.lists(st.lists(st.tuples(vectors, st.integers(1, 10**6)), min_size=3, max_size=3), min_size=1, max_size=4)


def settings(size: int = 3, **fields: Any) -> AggregationSettings:
    given = {"strategy": "fedavg", "buffer_size": size, "max_share": 1.0, "clip_multiple": 0.0, **fields}
    return AggregationSettings.model_validate(given)


def begin(size: int = 3, **fields: Any) -> State:
    return start(torch.zeros(3), aggregation=settings(size, **fields))


@given(vectors, rounds)
def test_each_round_is_the_mean_of_the_models_of_its_clients(
    weights: list[float], run: list[list[tuple[list[float], int]]]
) -> None:
    state = start(torch.tensor(weights), aggregation=settings())
    expected = weights
    for number, sent in enumerate(run):
        expected = oracles.fedavg(expected, [delta for delta, _ in sent], [n for _, n in sent])
        found = versions(state, [update(delta, number, number, n, client=f"c{i}") for i, (delta, n) in enumerate(sent)])
        assert [version.number for version in found] == [number + 1]
        assert found[0].weights.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("client", "base", "reason"), [("late", 0, Reason.TOO_STALE), ("c0", 1, Reason.ONE_A_ROUND)])
def test_what_is_not_of_this_round_or_a_second_of_a_client_leaves_all_as_it_was(
    client: str, base: int, reason: Reason
) -> None:
    state = begin(2)
    versions(state, [update([1.0, 0.0, 0.0], 0, 0, client=name) for name in ("c0", "c1")])
    state, (folded,) = step(state, update([0.0, 2.0, 0.0], 1, 1, client="c0"), now=0.0)
    assert isinstance(folded, Folded)
    before = fingerprint(state)
    state, (refused,) = step(state, update([9.0, 9.0, 9.0], 5, base, client=client), now=1e9)
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert fingerprint(state) == before
    (version,) = versions(state, [update([0.0, 0.0, 2.0], 1, 1, client="c1")])
    assert [item.client_id for item in version.manifest] == ["c0", "c1"]
    assert version.weights.tolist() == [1.0, 1.0, 1.0]


def test_a_round_waits_for_all_of_them_however_long() -> None:
    state = begin(3, deadline_seconds=1.0)
    for name in ("a", "b"):
        state, _ = step(state, update([1.0, 0.0, 0.0], client=name), now=0.0)
    assert next_deadline(state) is None
    state, effects = tick(state, now=1e9)
    assert effects == ()
    state, effects = step(state, update([1.0, 0.0, 0.0], client="c"), now=1e9)
    assert isinstance(effects[-1], NewVersion)


def test_a_quorum_ends_a_round_after_its_grace_or_at_the_deadline() -> None:
    state = begin(3, deadline_seconds=5.0, quorum=2, grace_seconds=2.0)
    state, _ = step(state, update([1.0, 0.0, 0.0], client="a"), now=0.0)
    assert next_deadline(state) is None  # fewer than the quorum make no round
    state, _ = step(state, update([1.0, 0.0, 0.0], client="b"), now=1.0)
    assert next_deadline(state) == 3.0
    state, (version,) = tick(state, now=3.0)
    assert isinstance(version, NewVersion)
    assert len(version.manifest) == 2
    state, _ = step(state, update([1.0, 0.0, 0.0], 1, 1, client="a"), now=10.0)
    state, _ = step(state, update([1.0, 0.0, 0.0], 1, 1, client="b"), now=14.0)
    assert next_deadline(state) == 15.0


def test_memory_does_not_grow_with_rounds_or_clients() -> None:
    state, held = begin(4), set()
    for number in range(20):
        versions(state, [update([1.0, 2.0, 3.0], number, number, client=f"c{i}") for i in range(4)])
        held.add((len(tensors_in(state)), len(state.sequences)))
    assert held == {(1, 0)}


def test_a_round_must_be_told_its_size() -> None:
    with pytest.raises(ValidationError, match="buffer_size: name how many clients"):
        AggregationSettings(strategy="fedavg")
    with pytest.raises(ValidationError, match=r"quorum: 5 is more than buffer_size \(3\)"):
        settings(3, quorum=5)
    with pytest.raises(ValidationError, match=r"quorum: 1 is more than buffer_size \(unset\)"):
        AggregationSettings(quorum=1)
