"""Deltas that are no tensor but yield their slices: the same numbers, the same versions, the same refusals."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings
from llmos_stream.core import NewVersion, Refused, Update, Whole, step
from llmos_stream.core.delta import Delta
from llmos_stream.core.flat import BLOCK, ROW, l2_norm, norm_of, row_norms
from llmos_stream.core.validate import LARGEST_NORM, check_and_clip
from llmos_stream.errors import Reason, Rejected
from tests.core.builders import LAYOUT, fingerprint, head, same_bytes, start

NUMEL = 3 * BLOCK + 1234
LENGTHS = [ROW, 7 * ROW, BLOCK - ROW, BLOCK, 2 * BLOCK]


class Sliced:
    """Yields copies of `flat`'s slices in one reused tensor, so that one kept past the next shows."""

    def __init__(self, flat: Tensor, length: int, bound: float = math.inf) -> None:
        self._flat = flat
        self._length = length
        self._bound = bound
        self.walks = 0

    @property
    def numel(self) -> int:
        return self._flat.numel()

    def norm(self) -> float:
        return norm_of((row for part in self.slices() for row in row_norms(part)), self.slices)

    def bound(self) -> float:
        return self._bound

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        self.walks += 1
        room = torch.empty(self._length)
        for part in torch.split(self._flat, self._length):
            yield torch.mul(part, 1.0 if factor is None else factor, out=room[: part.numel()])
            room.fill_(math.nan)

    def keep(self) -> "Sliced":
        return Sliced(self._flat.clone(), self._length, self._bound)


class Broken:
    """Turns out to be none when it is looked at."""

    numel = 2

    def norm(self) -> float:
        raise Rejected(Reason.CORRUPT_PAYLOAD, "no delta")

    def bound(self) -> float:
        return math.nan

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        raise AssertionError("folded all the same")

    def keep(self) -> "Broken":
        return self


def some(seed: int = 0, numel: int = NUMEL) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_the_norm_does_not_depend_on_the_slices(length: int, scale: float) -> None:
    flat = some() * scale
    sliced = Sliced(flat, length)
    assert sliced.norm() == l2_norm(flat)
    assert sliced.walks == (1 if scale == 1.0 else 2)


def test_nan_in_any_slice_shows() -> None:
    flat = some()
    flat[BLOCK + 5] = math.nan
    assert math.isnan(Sliced(flat, ROW).norm())


def test_a_tensor_is_a_delta() -> None:
    flat = some()
    for factor, expected in ((None, flat), (0.3, flat * 0.3)):
        parts = [part.clone() for part in Whole(flat).slices(factor)]
        assert same_bytes(torch.cat(parts), expected)
    assert Whole(flat).norm() == l2_norm(flat)
    with pytest.raises(ValueError, match="needed"):
        Whole(flat.double())


def run(strategy: str, clip: float | None, length: int | None) -> list[NewVersion]:
    state = start(
        torch.ones(NUMEL),
        LAYOUT,
        aggregation=AggregationSettings.model_validate({"strategy": strategy, "buffer_size": 2, "clip_norm": clip}),
    )
    published = []
    for number in range(4):
        flat = some(number)
        delta: Tensor | Delta = flat if length is None else Sliced(flat, length)
        state, effects = step(state, Update(head(number, 0, 5 + number), 0, number, delta), now=0.0)
        published += [effect for effect in effects if isinstance(effect, NewVersion)]
    return published


@pytest.mark.parametrize("length", [ROW * 100, BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("clip", [None, 100.0])
@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
def test_versions_do_not_depend_on_how_a_delta_is_held(strategy: str, clip: float | None, length: int) -> None:
    for one, other in zip(run(strategy, clip, None), run(strategy, clip, length), strict=True):
        assert one.manifest == other.manifest
        assert same_bytes(one.weights, other.weights)


@pytest.mark.parametrize(
    ("limit", "walks"), [(None, 0), (3.0, 0), (2.0, 1), (1.0, 1)], ids=["none", "above", "at the bound", "below"]
)
def test_the_norm_is_taken_only_where_the_bound_is_not_enough(limit: float | None, walks: int) -> None:
    flat = torch.full((4 * ROW,), 1.0 / 64)
    delta = Sliced(flat, ROW, bound=2.0)
    assert check_and_clip(delta, flat.numel(), limit) == check_and_clip(flat, flat.numel(), limit)
    assert delta.walks == walks


@pytest.mark.parametrize("bound", [math.nan, math.inf, LARGEST_NORM])
def test_a_bound_that_says_nothing_does_not_let_anything_pass(bound: float) -> None:
    flat = torch.tensor([1.0, math.inf])
    with pytest.raises(Rejected) as caught:
        check_and_clip(Sliced(flat, ROW, bound), 2, None)
    assert caught.value.reason is Reason.NOT_FINITE


def test_a_delta_of_another_length_is_refused_unseen() -> None:
    delta = Sliced(some(), ROW)
    with pytest.raises(Rejected) as caught:
        check_and_clip(delta, NUMEL + 1, None)
    assert caught.value.reason is Reason.WRONG_LAYOUT
    assert delta.walks == 0


def test_one_that_cannot_be_decoded_is_refused_and_changes_nothing() -> None:
    state = start(torch.zeros(2), LAYOUT)
    before = fingerprint(state)
    state, (refused,) = step(state, Update(head(), 0, 0, Broken()), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.CORRUPT_PAYLOAD
    assert fingerprint(state) == before


class Short(Sliced):
    """Says that it is longer than it is."""

    @property
    def numel(self) -> int:
        return super().numel + 1


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync"])
def test_slices_that_do_not_add_up_are_a_programming_error(strategy: str) -> None:
    aggregation = AggregationSettings.model_validate({"strategy": strategy, "buffer_size": 1})
    state = start(torch.zeros(10), LAYOUT, aggregation=aggregation)
    with pytest.raises(ValueError, match="a delta of 9 elements"):
        step(state, Update(head(), 0, 0, Short(torch.zeros(9), ROW)), now=0.0)
