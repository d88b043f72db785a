import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.core.flat import BLOCK, blocks, l2_norm, require_flat
from tests.core import oracles
from tests.core.builders import same_bytes

SEVERAL_BLOCKS = 2 * BLOCK + 12_347


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_norm_of_anything_finite(values: list[float]) -> None:
    assert l2_norm(torch.tensor(values)) == pytest.approx(oracles.norm(values), rel=1e-5, abs=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-12, 1.0, 1e12, 3e38])
@pytest.mark.parametrize("numel", [1, 4095, 4096, 4097, SEVERAL_BLOCKS])
def test_norm_of_many_elements_of_any_size(scale: float, numel: int) -> None:
    flat = torch.rand(numel, generator=torch.Generator().manual_seed(numel)).mul_(scale)
    expected = flat.double().norm().item()
    assert math.isfinite(expected)
    assert l2_norm(flat) == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("position", [0, 4095, 4096, BLOCK, SEVERAL_BLOCKS - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rest", [0.0, 1.0, 3e38])
def test_one_element_that_is_not_finite_shows_wherever_it_is(position: int, value: float, rest: float) -> None:
    flat = torch.full((SEVERAL_BLOCKS,), rest)
    flat[position] = value
    assert not math.isfinite(l2_norm(flat))


def test_nan_beside_infinity_shows() -> None:
    assert not math.isfinite(l2_norm(torch.tensor([math.nan, math.inf])))


def test_norm_of_nothing_and_of_zeros_is_zero() -> None:
    assert l2_norm(torch.zeros(0)) == 0.0
    assert l2_norm(torch.zeros(5000)) == 0.0


def test_blocks_are_views_that_cover_everything_once() -> None:
    flat, other = torch.zeros(SEVERAL_BLOCKS), torch.ones(SEVERAL_BLOCKS)
    for part, addend in blocks(flat, other):
        part.add_(addend)
    assert same_bytes(flat, other)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3),
        torch.zeros(()),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.bfloat16),
        torch.zeros(12)[::2],
        torch.zeros(6, requires_grad=True),
        torch.zeros(6, device="meta"),
    ],
)
def test_anything_but_a_flat_vector_is_a_programming_error(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="needed"):
        require_flat(tensor)


def test_the_number_of_elements_is_checked_where_it_is_known() -> None:
    require_flat(torch.zeros(6), 6)
    with pytest.raises(ValueError, match="6 elements are needed, not 5"):
        require_flat(torch.zeros(5), 6)
