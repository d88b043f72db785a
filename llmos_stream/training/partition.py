"""Splitting one labelled data set over clients, and holding a part of it out for testing.

All indices are int64 NumPy arrays in ascending order. The same arguments give the same split in every process.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmos_stream.errors import TaskError

Indices = NDArray[np.int64]

# NumPy's gamma sampler under- or overflows beyond these, and the split no longer changes long before them.
_LOWEST_ALPHA, _HIGHEST_ALPHA = 1e-4, 1e6


def dirichlet_split(labels: ArrayLike, shards: int, alpha: float, seed: int, min_per_shard: int = 1) -> list[Indices]:
    """Split with skewed labels: of each class, shard k gets a share p_k with p ~ Dirichlet(alpha, ..., alpha).

    `labels` is a sequence of N integers; each index from 0 to N - 1 lands in exactly one shard. Small alpha
    gives each shard few classes, large alpha gives all shards the same mix (Yurochkin et al. 2019). A shard
    left with fewer than `min_per_shard` examples is filled up from the largest one.

    Raises:
        TaskError: There are too few examples.
        ValueError: The arguments describe no split.
    """
    classes = _as_labels(labels)
    if shards < 1 or min_per_shard < 0 or not alpha > 0:
        raise ValueError(f"no split: shards {shards}, alpha {alpha}, min_per_shard {min_per_shard}")
    if len(classes) < shards * min_per_shard:
        raise TaskError(
            f"task.shards: {shards} shards of at least {min_per_shard} examples need {shards * min_per_shard}; "
            f"there are {len(classes)}"
        )
    generator = np.random.default_rng(seed)
    concentration = np.full(shards, np.clip(alpha, _LOWEST_ALPHA, _HIGHEST_ALPHA))
    pieces: list[list[Indices]] = [[] for _ in range(shards)]
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        ends = np.cumsum(generator.dirichlet(concentration))[:-1] * len(members)
        for shard, piece in enumerate(np.split(members, ends.round().astype(np.int64))):
            pieces[shard].append(piece)
    # Shuffled, so that what a large shard gives away is not all of its last class.
    parts = [generator.permutation(np.concatenate([*piece, np.empty(0, np.int64)])) for piece in pieces]
    _fill_up(parts, min_per_shard)
    return [np.sort(part) for part in parts]


def split_alike(labels: ArrayLike, parts: Sequence[Indices], others: ArrayLike, seed: int) -> list[Indices]:
    """Split `others` as `labels` are split into `parts`: of each class every part gets the share that it has there.

    Both are sequences of integers. A part may stay empty. A class that `labels` lacks is in none.
    """
    classes, split = _as_labels(labels), _as_labels(others)
    generator = np.random.default_rng(seed)
    pieces: list[list[Indices]] = [[np.empty(0, np.int64)] for _ in parts]
    for label in np.unique(split):
        members = generator.permutation(np.flatnonzero(split == label))
        counts = np.array([np.count_nonzero(classes[part] == label) for part in parts])
        if not counts.any():
            continue
        ends = np.cumsum(counts)[:-1] * len(members) / counts.sum()
        for piece, chosen in zip(pieces, np.split(members, ends.round().astype(np.int64)), strict=True):
            piece.append(chosen)
    return [np.sort(np.concatenate(piece)) for piece in pieces]


def stratified_holdout(labels: ArrayLike, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(kept, held out): of each class, `fraction` of the examples, rounded, is held out.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """
    classes = _as_labels(labels)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    generator = np.random.default_rng(seed)
    is_held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        is_held[members[: round(fraction * len(members))]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _fill_up(parts: list[Indices], least: int) -> None:
    for shard in range(len(parts)):
        while (lacking := least - len(parts[shard])) > 0:
            # The largest part has more than `least`, or the parts together would hold too few examples.
            giver = max(range(len(parts)), key=lambda index: len(parts[index]))
            given = min(lacking, len(parts[giver]) - least)
            parts[shard] = np.concatenate([parts[shard], parts[giver][-given:]])
            parts[giver] = parts[giver][:-given]


def _as_labels(labels: ArrayLike) -> NDArray[np.int64]:
    classes = np.asarray(labels)
    if classes.ndim != 1 or not (np.issubdtype(classes.dtype, np.integer) or not classes.size):
        raise ValueError(f"labels must be a sequence of integers, got shape {classes.shape} of {classes.dtype}")
    return classes.astype(np.int64, copy=False)
