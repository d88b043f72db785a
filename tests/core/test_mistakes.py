"""Mistakes that other frameworks shipped (DESIGN, section 3): one test for each that aggregation could make."""

import pytest
import torch

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core import State
from tests.core.builders import LAYOUT, discount, start, update, versions


def fedbuff(weights: list[float], size: int, version: int = 0) -> State:
    return start(torch.tensor(weights), LAYOUT, version, aggregation=AggregationSettings(buffer_size=size))


def test_updates_do_not_weigh_the_same_whatever_is_behind_them() -> None:
    (version,) = versions(fedbuff([0.0], size=2), [update([1.0], 0, examples=30), update([5.0], 1, examples=10)])
    assert version.weights.item() == pytest.approx(2.0)


def test_base_versions_do_not_weigh_the_same_whatever_number_of_clients_is_behind_them() -> None:
    state = start(
        torch.zeros(1),
        LAYOUT,
        version=1,
        aggregation=AggregationSettings(buffer_size=4),
        staleness=StalenessSettings(kind="constant"),
    )
    sent = [update([1.0], 0, base=1), update([1.0], 1, base=1), update([1.0], 2, base=1), update([5.0], 3, base=0)]
    (version,) = versions(state, sent)
    assert version.weights.item() == pytest.approx(2.0)


@pytest.mark.parametrize("tau", [1, 2, 4, 9])
def test_the_root_is_of_one_plus_tau(tau: int) -> None:
    value = discount(tau, StalenessSettings(kind="polynomial", a=0.5))
    assert value == pytest.approx(1 / (1 + tau) ** 0.5)
    assert value != pytest.approx(1 / (1 + tau**0.5), rel=1e-2)


def test_the_mixing_rate_does_not_decay_for_ever() -> None:
    state = start(
        torch.zeros(1),
        LAYOUT,
        version=1,
        aggregation=AggregationSettings(strategy="fedasync", mixing=0.6),
        history={0: torch.zeros(1)},
    )
    updates = [update([1.0], i, base=i) for i in range(50)]
    weights = [version.manifest[0].weight for version in versions(state, updates)]
    assert weights == pytest.approx([0.6 / 2**0.5] * 50)
    (fresh,) = versions(state, [update([1.0], 50, base=51)])
    assert fresh.manifest[0].weight == 0.6


def test_staleness_is_that_of_the_version_named_and_not_of_the_clients_last() -> None:
    state = fedbuff([0.0], size=3, version=8)
    sent = [update([0.0], 0, base=8), update([0.0], 1, base=5), update([0.0], 2, base=7)]
    (version,) = versions(state, sent)
    assert [entry.staleness for entry in version.manifest] == [0, 3, 1]


def test_staleness_counts_at_the_moment_of_folding() -> None:
    state = fedbuff([0.0], size=1)
    late = update([1.0], 0, base=0, client="slow")
    versions(state, [update([0.0], i, base=i) for i in range(3)])
    (version,) = versions(state, [late])
    assert version.manifest[0].staleness == 3
    assert version.weights.item() == pytest.approx(0.5)


def test_staleness_is_not_forgotten_in_the_buffered_path() -> None:
    sent = [update([1.0], 0, base=3), update([1.0], 1, base=0)]
    (version,) = versions(fedbuff([0.0], size=2, version=3), sent)
    assert version.weights.item() == pytest.approx((1.0 + 0.5) / 2)


def test_a_stale_buffer_takes_a_smaller_step_and_not_a_full_one() -> None:
    sent = [update([1.0], i, base=0, examples=7) for i in range(4)]
    (version,) = versions(fedbuff([0.0], size=4, version=3), sent)
    assert version.weights.item() == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [1, 10, 1_000_000])
def test_weights_are_normalised(factor: int) -> None:
    sent = [update([1.0], 0, examples=3 * factor), update([5.0], 1, examples=factor)]
    (version,) = versions(fedbuff([10.0], size=2), sent)
    assert version.weights.item() == pytest.approx(12.0)


def test_many_updates_do_not_add_up_to_a_longer_step() -> None:
    (version,) = versions(fedbuff([0.0], size=64), [update([1.0], i, examples=5) for i in range(64)])
    assert version.weights.item() == pytest.approx(1.0)
