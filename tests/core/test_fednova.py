"""FedNova through `step`, against the paper's formula written out."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import AggregationSettings
from llmos_stream.core import NewVersion, step
from llmos_stream.types import LOCAL_STEPS
from tests.core import oracles
from tests.core.builders import rule_of, same_bytes, start, update, versions

vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)
sent = st.lists(
    st.tuples(vectors, st.integers(1, 1000), st.integers(10, 40), st.integers(0, 9)), min_size=1, max_size=6
)
Sent = tuple[list[float], int, float | None, int]
VERSION = 9


def version_of(items: Sequence[Sent], strategy: str = "fednova", **fields: Any) -> NewVersion:
    aggregation = AggregationSettings.model_validate(
        {"strategy": strategy, "buffer_size": len(items), "clip_multiple": 0.0, "max_share": 1.0, **fields}
    )
    state = start(torch.zeros(3), version=VERSION, aggregation=aggregation)
    (version,) = versions(
        state,
        [
            update(delta, i, VERSION - tau, n, metrics={} if e is None else {LOCAL_STEPS: float(e)})
            for i, (delta, n, e, tau) in enumerate(items)
        ],
    )
    return version


@given(sent, st.none() | st.floats(0.3, 2))
def test_each_delta_counts_a_step_and_all_of_them_as_many_steps_as_they_made(
    items: Sequence[Sent], clip: float | None
) -> None:
    expected = oracles.fednova(
        [oracles.clipped(delta, clip) for delta, _, _, _ in items],
        [n for _, n, _, _ in items],
        [float(e or 0) for _, _, e, _ in items],
        [oracles.s("polynomial", tau, 0.5, 4) for _, _, _, tau in items],
    )
    version = version_of(items, clip_norm=clip)
    assert version.weights.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert [item.steps for item in version.manifest] == [e for _, _, e, _ in items]


def test_a_client_of_twice_the_steps_pulls_no_harder() -> None:
    """One goes twice as far as the other because it makes twice the steps."""
    version = version_of([([2.0, 0.0, 0.0], 1, 20.0, 0), ([0.0, 1.0, 0.0], 1, 10.0, 0)])
    assert version.weights.tolist() == pytest.approx([0.75, 0.75, 0.0])
    rule = rule_of(AggregationSettings(strategy="fednova", buffer_size=2)).strategy()
    assert rule.shares(version.manifest) == pytest.approx([0.375, 0.75])


def test_of_equal_steps_it_is_fedbuff() -> None:
    items: Sequence[Sent] = [([0.5, -0.25, 1.0], 3, 8.0, 1), ([0.125, 1.0, 0.0], 5, 8.0, 0)]
    found, plain = version_of(items), version_of(items, "fedbuff")
    assert found.weights.tolist() == pytest.approx(plain.weights.tolist())
    assert [item.steps for item in plain.manifest] == [None, None]


@pytest.mark.parametrize("claimed", [None, math.nan, math.inf, 0.0, -3.0, 1e300])
def test_one_that_does_not_say_its_steps_counts_as_the_median(claimed: float | None) -> None:
    items: Sequence[Sent] = [([1.0, 0.0, 0.0], 1, e, 0) for e in (10.0, 12.0, 14.0, claimed)]
    assert [item.steps for item in version_of(items).manifest] == [10.0, 12.0, 14.0, 12.0]


def test_where_nobody_says_it_is_fedbuff() -> None:
    items: Sequence[Sent] = [([1.0, 0.0, 2.0], 3, None, 0), ([0.0, 1.0, 0.0], 1, None, 0)]
    assert version_of(items).weights.tolist() == pytest.approx(version_of(items, "fedbuff").weights.tolist())


@pytest.mark.parametrize(("claimed", "taken", "heaviest"), [(1e-6, 1.0, 41 / 25), (1e9, 100.0, 14 / 25)])
def test_nobody_is_heavy_by_the_steps_that_it_claims(claimed: float, taken: float, heaviest: float) -> None:
    items: Sequence[Sent] = [([1.0, 0.0, 0.0], 1, 10.0, 0)] * 4 + [([0.0, 1.0, 0.0], 1, claimed, 0)]
    version = version_of(items)
    assert version.manifest[-1].steps == taken
    shares = rule_of(AggregationSettings(strategy="fednova", buffer_size=5)).strategy().shares(version.manifest)
    assert shares is not None
    assert max(shares) == pytest.approx(heaviest)


def test_a_version_of_as_many_updates_as_clients_take_part_where_none_says_how_many() -> None:
    rule = rule_of(AggregationSettings(strategy="fednova"))
    assert rule.strategy().adapts
    state = start(torch.zeros(3), aggregation=AggregationSettings(strategy="fednova"))
    state, effects = step(state, update([1.0, 2.0, 3.0]), 0.0, (1, None))  # type: ignore[arg-type]
    assert isinstance(effects[-1], NewVersion)
    assert effects[-1].buffer_size == 1


def test_a_manifest_rebuilds_the_version_whatever_the_metrics_say() -> None:
    items: Sequence[Sent] = [
        ([1.0, 0.5, 0.0], 3, 10.0, 1),
        ([0.0, 1.0, 1.0], 1, None, 0),
        ([0.5, 0.5, 0.5], 2, 900.0, 2),
    ]
    version = version_of(items)
    pipeline = rule_of(AggregationSettings(strategy="fednova", buffer_size=3)).pipeline(VERSION, torch.zeros(3))
    for item, (delta, *_) in zip(version.manifest, items, strict=True):
        pipeline.fold(item, torch.tensor(delta), now=0.0)
    weights, manifest = pipeline.flush(VERSION, torch.zeros(3), recorded=True)
    assert manifest == version.manifest
    assert same_bytes(weights, version.weights)
