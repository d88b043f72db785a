"""Splits cover every example once, whatever the labels, the skew and the seed."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.errors import TaskError
from llmos_stream.training.partition import dirichlet_split, split_alike, stratified_holdout

LABELS = np.arange(2000) % 10
seeds = st.integers(0, 2**63 - 1)
label_lists = st.lists(st.integers(-5, 20), max_size=200)
alphas = st.floats(min_value=0, exclude_min=True, allow_infinity=True)


@given(label_lists, st.integers(1, 20), alphas, seeds, st.data())
def test_a_split_covers_each_index_once_and_fills_each_shard(
    labels: list[int], shards: int, alpha: float, seed: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(0, len(labels) // shards))
    parts = dirichlet_split(labels, shards, alpha, seed, min_per_shard=least)
    assert len(parts) == shards
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(len(part) >= least for part in parts)
    assert all(part.dtype == np.int64 and part.tolist() == sorted(part.tolist()) for part in parts)


@given(label_lists, st.integers(1, 10), seeds)
def test_a_split_depends_on_its_arguments_alone(labels: list[int], shards: int, seed: int) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]  # the legacy state is a tuple here
    first, second = (dirichlet_split(labels, shards, 0.5, seed, min_per_shard=0) for _ in range(2))
    assert [part.tolist() for part in first] == [part.tolist() for part in second]
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


@given(label_lists, st.floats(0.01, 0.99), seeds)
def test_a_holdout_takes_the_fraction_of_each_class(labels: list[int], fraction: float, seed: int) -> None:
    kept, held = stratified_holdout(labels, fraction, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    counts = Counter(np.asarray(labels)[held].tolist())
    for label in set(labels):
        assert counts[label] == round(fraction * labels.count(label))


def test_another_seed_gives_another_split() -> None:
    first, second = (dirichlet_split(LABELS, 4, 0.5, seed) for seed in (0, 1))
    assert first[0].tolist() != second[0].tolist()
    assert stratified_holdout(LABELS, 0.2, 0)[1].tolist() != stratified_holdout(LABELS, 0.2, 1)[1].tolist()


def _unevenness(alpha: float, seed: int) -> float:
    """Mean total variation distance between a shard's labels and uniform ones: 0 is even, 0.9 is one class each."""
    distances = []
    for part in dirichlet_split(LABELS, 8, alpha, seed):
        counts = np.bincount(np.asarray(LABELS)[part], minlength=10)
        distances.append(sum(abs(counts / len(part) - 0.1)) / 2)
    return float(np.mean(distances))


@pytest.mark.parametrize("seed", range(5))
def test_smaller_alpha_skews_labels_more(seed: int) -> None:
    unevenness = [_unevenness(alpha, seed) for alpha in (1000.0, 1.0, 0.1, 0.001)]
    assert all(less < more for less, more in pairwise(unevenness))
    assert unevenness[0] < 0.05
    assert unevenness[-1] > 0.7


def test_class_shares_follow_the_dirichlet_distribution() -> None:
    """Of a share p of Dirichlet(a, ..., a) over k shards, the mean is 1/k and the variance (k-1) / (k^2 (k a + 1))."""
    shards, alpha = 5, 0.5
    labels = np.repeat(np.arange(400), 100)
    parts = dirichlet_split(labels, shards, alpha, seed=3, min_per_shard=0)
    shares = np.array([np.bincount(labels[part], minlength=400) / 100 for part in parts])
    assert shares.mean(axis=1) == pytest.approx(np.full(shards, 1 / shards), abs=0.05)
    assert shares.var() == pytest.approx((shards - 1) / (shards**2 * (shards * alpha + 1)), rel=0.1)


def test_filling_up_takes_from_the_largest_shards_only() -> None:
    """At a tiny alpha each class is whole in one shard, so most of ten shards must be filled up from the few."""
    labels = np.zeros(1000, dtype=np.int64)
    sizes = sorted(len(part) for part in dirichlet_split(labels, 10, 1e-6, seed=0, min_per_shard=20))
    assert sizes == [20] * 9 + [820]


@pytest.mark.parametrize("seed", range(20))
def test_no_shard_is_emptied_to_fill_another(seed: int) -> None:
    parts = dirichlet_split([0] * 60, 6, 0.5, seed, min_per_shard=10)
    assert [len(part) for part in parts] == [10] * 6


def test_a_shard_gives_away_a_mix_of_its_classes() -> None:
    """At a tiny alpha both classes often land in one of two shards; the other must then get some of each."""
    labels = [0, 1] * 200
    splits = [dirichlet_split(labels, 2, 1e-6, seed, min_per_shard=50) for seed in range(10)]
    filled_up = [part for parts in splits for part in parts if len(part) == 50]
    assert filled_up
    assert all(set(np.asarray(labels)[part].tolist()) == {0, 1} for part in filled_up)


def test_too_few_examples_are_refused_with_the_numbers() -> None:
    with pytest.raises(TaskError, match=r"task\.shards: 3 shards of at least 4 examples need 12; there are 11"):
        dirichlet_split([0] * 11, 3, 0.5, seed=0, min_per_shard=4)


@pytest.mark.parametrize(
    ("shards", "alpha", "least"), [(0, 1.0, 1), (2, 0.0, 1), (2, -1.0, 1), (2, float("nan"), 1), (2, 1.0, -1)]
)
def test_arguments_that_are_no_split_are_refused(shards: int, alpha: float, least: int) -> None:
    with pytest.raises(ValueError, match="no split"):
        dirichlet_split([0, 1, 2], shards, alpha, seed=0, min_per_shard=least)


@pytest.mark.parametrize("labels", [[[0, 1], [1, 0]], [0.5, 1.5], ["cat", "dog"]])
def test_labels_that_are_no_integers_are_refused(labels: list[object]) -> None:
    with pytest.raises(ValueError, match="labels must be a sequence of integers"):
        dirichlet_split(labels, 2, 0.5, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        stratified_holdout([0, 1], fraction, seed=0)


def test_other_examples_are_split_by_the_same_shares_of_each_class() -> None:
    generator = np.random.default_rng(3)
    labels, others = generator.integers(0, 4, 4000), generator.integers(0, 4, 1000)
    parts = dirichlet_split(labels, 5, 0.3, seed=1)
    split = split_alike(labels, parts, others, seed=2)
    assert sorted(np.concatenate(split)) == list(range(1000))
    for part, chosen in zip(parts, split, strict=True):
        for label in range(4):
            share = np.count_nonzero(labels[part] == label) / np.count_nonzero(labels == label)
            expected = share * np.count_nonzero(others == label)
            assert abs(np.count_nonzero(others[chosen] == label) - expected) <= 1
    again = split_alike(labels, parts, others, seed=2)
    assert all(np.array_equal(one, other) for one, other in zip(split, again, strict=True))
