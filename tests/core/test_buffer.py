import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.core.buffer import Buffer
from llmos_stream.core.flat import BLOCK
from tests.core import oracles
from tests.core.builders import contribution, same_bytes, tensors_in

vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)
entries = st.lists(st.tuples(vectors, st.integers(1, 10**9), st.floats(0.01, 1)), min_size=1, max_size=8)


@given(entries)
def test_drains_to_the_sum_and_the_examples_that_divide_it(items: list[tuple[list[float], int, float]]) -> None:
    buffer = Buffer(capacity=8, deadline_seconds=1.0)
    for delta, examples, factor in items:
        buffer.fold(contribution(examples, weight=examples * factor), torch.tensor(delta), now=0.0)
    total, divisor, manifest = buffer.drain()
    gradient = total / divisor
    deltas, examples_of, factors = zip(*items, strict=True)
    assert gradient.tolist() == pytest.approx(oracles.pseudo_gradient(deltas, examples_of, factors), abs=2e-5)
    assert [entry.num_examples for entry in manifest] == list(examples_of)


def test_the_clip_factor_scales_the_delta_and_not_the_divisor() -> None:
    buffer = Buffer(capacity=1, deadline_seconds=1.0)
    buffer.fold(contribution(4, weight=4.0, clip=0.25), torch.tensor([8.0]), now=0.0)
    total, examples, _ = buffer.drain()
    assert (total.tolist(), examples) == ([8.0], 4.0)


def test_is_due_when_full_or_late_and_never_when_empty() -> None:
    buffer = Buffer(capacity=2, deadline_seconds=10.0)
    assert buffer.deadline() is None
    assert not buffer.due(now=1e9)
    buffer.fold(contribution(1, 1.0), torch.ones(2), now=5.0)
    assert buffer.deadline() == 15.0
    assert not buffer.due(now=14.999)
    assert buffer.due(now=15.0)
    buffer.fold(contribution(1, 1.0), torch.ones(2), now=6.0)
    assert buffer.deadline() == 15.0
    assert buffer.due(now=6.0)
    buffer.drain()
    assert not buffer.due(now=1e9)


def test_starts_over_after_draining() -> None:
    buffer = Buffer(capacity=2, deadline_seconds=10.0)
    buffer.fold(contribution(1, 1.0), torch.tensor([5.0]), now=0.0)
    first, _, _ = buffer.drain()
    buffer.fold(contribution(1, 1.0), torch.tensor([7.0]), now=100.0)
    assert buffer.deadline() == 110.0
    second, examples, manifest = buffer.drain()
    assert (first.tolist(), second.tolist(), examples, len(manifest)) == ([5.0], [7.0], 1.0, 1)


def test_draining_an_empty_one_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        Buffer(capacity=2, deadline_seconds=10.0).drain()


def test_deltas_are_only_read_and_not_kept() -> None:
    buffer = Buffer(capacity=2, deadline_seconds=10.0)
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    for delta in (first, second):
        buffer.fold(contribution(1, 1.0), delta, now=0.0)
    kept = {tensor.data_ptr() for tensor in tensors_in(buffer)}
    assert not kept & {first.data_ptr(), second.data_ptr()}
    buffer.drain()
    assert (first.tolist(), second.tolist()) == ([1.0, 2.0], [3.0, 4.0])


def test_one_sum_whatever_it_holds() -> None:
    numel = BLOCK + 5
    buffer = Buffer(capacity=100, deadline_seconds=10.0)
    for _ in range(50):
        buffer.fold(contribution(1, 1.0), torch.ones(numel), now=0.0)
    assert [tensor.numel() for tensor in tensors_in(buffer)] == [numel]
    assert same_bytes(buffer.drain()[0], torch.full((numel,), 50.0))


def test_each_operation_over_several_blocks_is_rounded_on_its_own() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(2 * BLOCK + 12_347, generator=generator) for _ in range(2))
    buffer = Buffer(capacity=2, deadline_seconds=10.0)
    buffer.fold(contribution(1, 0.7), first, now=0.0)
    buffer.fold(contribution(1, 0.3), second, now=0.0)
    assert same_bytes(buffer.drain()[0], first * 0.7 + second * 0.3)


def test_the_largest_counts_that_64_bits_hold_do_not_overflow() -> None:
    buffer = Buffer(capacity=3, deadline_seconds=10.0)
    for _ in range(3):
        buffer.fold(contribution(2**64 - 1, weight=float(2**64 - 1)), torch.tensor([1e15]), now=0.0)
    total, examples, _ = buffer.drain()
    assert (total / examples).tolist() == pytest.approx([1e15])
