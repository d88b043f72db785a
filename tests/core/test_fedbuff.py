"""FedBuff through `step`, against the formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from tests.core import oracles
from tests.core.builders import LAYOUT, start, update, versions

vectors = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
fresh = st.lists(st.tuples(vectors, st.integers(1, 10_000)), min_size=1, max_size=4)
stale = st.lists(st.tuples(vectors, st.integers(1, 10**9), st.integers(0, 9)), min_size=1, max_size=8)


@given(vectors, fresh, st.sampled_from(["constant", "polynomial", "hinge"]))
def test_with_every_staleness_0_a_version_is_the_fedavg_formula(
    weights: list[float], sent: list[tuple[list[float], int]], kind: str
) -> None:
    state = start(
        torch.tensor(weights),
        LAYOUT,
        version=5,
        aggregation=AggregationSettings(buffer_size=len(sent)),
        staleness=StalenessSettings.model_validate({"kind": kind}),
    )
    updates = [update(delta, i, base=5, examples=examples) for i, (delta, examples) in enumerate(sent)]
    (version,) = versions(state, updates)
    deltas, examples_of = zip(*sent, strict=True)
    assert version.weights.tolist() == pytest.approx(oracles.fedavg(weights, deltas, examples_of), abs=1e-6, rel=0)


@given(vectors, stale)
def test_any_staleness_and_any_number_of_examples(
    weights: list[float], sent: list[tuple[list[float], int, int]]
) -> None:
    state = start(torch.tensor(weights), LAYOUT, version=9, aggregation=AggregationSettings(buffer_size=len(sent)))
    updates = [update(delta, i, base=9 - tau, examples=n) for i, (delta, n, tau) in enumerate(sent)]
    (version,) = versions(state, updates)
    deltas, examples_of, taus = zip(*sent, strict=True)
    discounts = [oracles.s("polynomial", tau, 0.5, 4) for tau in taus]
    gradient = oracles.pseudo_gradient(deltas, examples_of, discounts)
    assert version.weights.tolist() == pytest.approx([w + g for w, g in zip(weights, gradient, strict=True)], abs=2e-6)
    assert [entry.staleness for entry in version.manifest] == list(taus)
    expected = [n * factor for n, factor in zip(examples_of, discounts, strict=True)]
    assert [entry.weight for entry in version.manifest] == pytest.approx(expected)


@given(vectors, vectors, st.integers(1, 10**9))
def test_one_fresh_update_alone_gives_the_clients_model(
    weights: list[float], delta: list[float], examples: int
) -> None:
    state = start(torch.tensor(weights), LAYOUT, aggregation=AggregationSettings(buffer_size=1))
    (version,) = versions(state, [update(delta, examples=examples)])
    assert version.weights.tolist() == pytest.approx([w + d for w, d in zip(weights, delta, strict=True)], abs=1e-6)


@given(vectors, st.floats(0.01, 3))
def test_a_long_delta_is_scaled_to_the_limit_and_the_manifest_says_so(delta: list[float], limit: float) -> None:
    state = start(torch.zeros(4), LAYOUT, aggregation=AggregationSettings(buffer_size=1, clip_norm=limit))
    (version,) = versions(state, [update(delta, examples=3)])
    assert version.weights.tolist() == pytest.approx(oracles.clipped(delta, limit), abs=1e-5)
    length = oracles.norm(delta)
    assert version.manifest[0].clip == pytest.approx(1.0 if length <= limit else limit / length, rel=1e-5)


def test_the_server_optimiser_remembers_from_version_to_version() -> None:
    state = start(
        torch.zeros(1),
        LAYOUT,
        aggregation=AggregationSettings(buffer_size=1),
        server_optimizer=ServerOptimizerSettings(lr=0.5, momentum=0.5),
    )
    first, second = versions(state, [update([1.0], 0), update([1.0], 1, base=1)])
    assert (first.weights.item(), second.weights.item()) == (0.5, 1.25)
