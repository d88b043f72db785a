import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core import check_head
from llmos_stream.core.validate import LARGEST_NORM, check_and_clip, clip_factor
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import UpdateHead
from tests.core.builders import LAYOUT, head, same_bytes


def check(
    update_head: UpdateHead, version: int = 7, most: int = 100, maximum: int = 5, layout_digest: bytes = LAYOUT
) -> int:
    return check_head(
        update_head,
        version=version,
        layout_digest=layout_digest,
        aggregation=AggregationSettings(max_num_examples=most),
        staleness=StalenessSettings(maximum=maximum),
    )


def test_a_good_head_gives_its_staleness() -> None:
    assert check(head(sequence=2**63 - 1, base=4, examples=100)) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (head(sequence=-1, base=4), Reason.MALFORMED),
        (head(sequence=2**63, base=4), Reason.MALFORMED),
        (head(base=4, layout=b"another"), Reason.WRONG_LAYOUT),
        (head(base=4, layout=b""), Reason.WRONG_LAYOUT),
        (head(base=4, examples=0), Reason.BAD_NUM_EXAMPLES),
        (head(base=4, examples=-3), Reason.BAD_NUM_EXAMPLES),
        (head(base=4, examples=101), Reason.BAD_NUM_EXAMPLES),
        (head(base=8), Reason.UNKNOWN_BASE_VERSION),
        (head(base=-1), Reason.UNKNOWN_BASE_VERSION),
        (head(base=1), Reason.TOO_STALE),
    ],
)
def test_a_bad_head_is_refused_with_its_reason(bad: UpdateHead, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        check(bad)
    assert caught.value.reason is reason


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_a_delta_passes_exactly_when_all_of_it_is_finite(values: list[float]) -> None:
    delta = torch.tensor(values)
    before = delta.clone()
    if all(math.isfinite(value) for value in values) and math.hypot(*values) <= LARGEST_NORM:
        assert check_and_clip(delta, len(values), None) == 1.0
    else:
        with pytest.raises(Rejected) as caught:
            check_and_clip(delta, len(values), None)
        assert caught.value.reason is Reason.NOT_FINITE
    assert same_bytes(delta, before)


def test_a_delta_of_another_length_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        check_and_clip(torch.zeros(3), 4, None)
    assert caught.value.reason is Reason.WRONG_LAYOUT


def test_a_delta_of_another_type_is_the_decoders_fault() -> None:
    with pytest.raises(ValueError, match="float32"):
        check_and_clip(torch.zeros(4, dtype=torch.float64), 4, None)


def test_a_huge_delta_that_is_finite_has_a_norm() -> None:
    with pytest.raises(Rejected, match=r"L2 norm 3e\+39"):
        check_and_clip(torch.full((100,), 3e38), 100, None)


@given(st.floats(0, 1e15), st.floats(1e-6, 1e6))
def test_clipping_brings_the_norm_within_the_limit(norm: float, limit: float) -> None:
    factor = clip_factor(norm, limit)
    assert 0 < factor <= 1
    assert norm * factor <= limit * (1 + 1e-12)
    assert (factor == 1) == (norm <= limit)


def test_without_a_limit_nothing_is_clipped() -> None:
    assert clip_factor(1e9, None) == 1.0


@pytest.mark.parametrize("limit", [None, 1.0])
def test_what_float32_could_not_fold_is_refused_clipped_or_not(limit: float | None) -> None:
    clip_factor(LARGEST_NORM, limit)
    with pytest.raises(Rejected) as caught:
        clip_factor(LARGEST_NORM * 1.001, limit)
    assert caught.value.reason is Reason.NOT_FINITE
