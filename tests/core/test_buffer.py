"""What waits for its version: when it is time, and the running sum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmos_stream.core import Whole
from llmos_stream.core.buffer import Buffer, Quorum
from llmos_stream.core.flat import BLOCK
from llmos_stream.core.running_sum import RunningSum
from tests.core import oracles
from tests.core.builders import contribution, same_bytes, tensors_in

vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)
entries = st.lists(st.tuples(vectors, st.integers(1, 10**9), st.floats(0.01, 1)), min_size=1, max_size=8)


def summed(*deltas: tuple[Tensor, float]) -> RunningSum:
    running = RunningSum()
    for delta, factor in deltas:
        running.add(Whole(delta), factor)
    return running


@given(entries)
def test_drains_to_the_sum(items: list[tuple[list[float], int, float]]) -> None:
    total = summed(*((torch.tensor(delta), examples * factor) for delta, examples, factor in items)).drain()
    deltas, examples_of, factors = zip(*items, strict=True)
    gradient = total / sum(examples_of)
    assert gradient.tolist() == pytest.approx(oracles.pseudo_gradient(deltas, examples_of, factors), abs=2e-5)


def test_is_due_when_full_or_late_and_never_when_empty() -> None:
    buffer = Buffer(capacity=2, deadline_seconds=10.0)
    assert buffer.deadline() is None
    assert not buffer.due(now=1e9)
    buffer.add(contribution(1, 1.0), now=5.0)
    assert buffer.deadline() == 15.0
    assert not buffer.due(now=14.999)
    assert buffer.due(now=15.0)
    buffer.add(contribution(1, 1.0), now=6.0)
    assert buffer.deadline() == 15.0
    assert buffer.due(now=6.0)
    buffer.drain()
    assert not buffer.due(now=1e9)


def test_fewer_than_the_least_are_not_due_however_late() -> None:
    buffer = Buffer(capacity=3, deadline_seconds=10.0, least=2)
    buffer.add(contribution(1, 1.0), now=0.0)
    assert buffer.deadline() is None  # nobody has to look again at any time
    assert not buffer.due(now=1e9)
    buffer.add(contribution(1, 1.0), now=99.0)
    assert buffer.due(now=99.0)


def test_after_a_quorum_the_others_have_a_window_of_grace() -> None:
    buffer = Buffer(capacity=4, deadline_seconds=10.0, quorum=Quorum(2, 1.5))
    buffer.add(contribution(1, 1.0), now=0.0)
    assert buffer.deadline() == 10.0
    buffer.add(contribution(1, 1.0), now=3.0)
    assert buffer.deadline() == 4.5
    buffer.add(contribution(1, 1.0), now=4.0)  # comes within the grace, and does not make it longer
    assert buffer.deadline() == 4.5
    assert not buffer.due(now=4.4)
    assert buffer.due(now=4.5)
    assert len(buffer.drain()) == 3
    buffer.add(contribution(1, 1.0), now=5.0)
    assert buffer.deadline() == 15.0


def test_capacity_and_deadline_end_a_grace() -> None:
    full = Buffer(capacity=2, deadline_seconds=None, quorum=Quorum(1, 5.0))
    full.add(contribution(1, 1.0), now=0.0)
    assert full.deadline() == 5.0
    full.add(contribution(1, 1.0), now=1.0)
    assert full.due(now=1.0)
    late = Buffer(capacity=3, deadline_seconds=2.0, quorum=Quorum(2, 5.0))
    late.add(contribution(1, 1.0), now=0.0)
    late.add(contribution(1, 1.0), now=1.0)
    assert late.deadline() == 2.0


def test_a_quorum_without_grace_makes_a_version_at_once() -> None:
    buffer = Buffer(capacity=3, deadline_seconds=None, quorum=Quorum(2, 0.0))
    buffer.add(contribution(1, 1.0), now=7.0)
    assert not buffer.due(now=1e9)
    buffer.add(contribution(1, 1.0), now=8.0)
    assert buffer.due(now=8.0)


def test_without_a_deadline_only_the_capacity_counts() -> None:
    buffer = Buffer(capacity=2, deadline_seconds=None)
    buffer.add(contribution(1, 1.0), now=0.0)
    assert not buffer.due(now=1e9)


def test_starts_over_after_draining() -> None:
    buffer, running = Buffer(capacity=2, deadline_seconds=10.0), summed((torch.tensor([5.0]), 1.0))
    buffer.add(contribution(1, 1.0), now=0.0)
    assert (len(buffer.drain()), running.drain().tolist()) == (1, [5.0])
    buffer.add(contribution(2, 1.0), now=100.0)
    running.add(Whole(torch.tensor([7.0])), 1.0)
    assert buffer.deadline() == 110.0
    assert [item.num_examples for item in buffer.drain()] == [2]
    assert running.drain().tolist() == [7.0]


def test_draining_an_empty_one_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        Buffer(capacity=2, deadline_seconds=10.0).drain()
    with pytest.raises(ValueError, match="nothing"):
        RunningSum().drain()


def test_deltas_are_only_read_and_not_kept() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    running = summed((first, 1.0), (second, 1.0))
    kept = {tensor.data_ptr() for tensor in tensors_in(running)}
    assert not kept & {first.data_ptr(), second.data_ptr()}
    running.drain()
    assert (first.tolist(), second.tolist()) == ([1.0, 2.0], [3.0, 4.0])


def test_one_sum_whatever_it_holds() -> None:
    numel = BLOCK + 5
    running = summed(*[(torch.ones(numel), 1.0)] * 50)
    assert [tensor.numel() for tensor in tensors_in(running)] == [numel]
    assert same_bytes(running.drain(), torch.full((numel,), 50.0))


def test_each_operation_over_several_blocks_is_rounded_on_its_own() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(2 * BLOCK + 12_347, generator=generator) for _ in range(2))
    assert same_bytes(summed((first, 0.7), (second, 0.3)).drain(), first * 0.7 + second * 0.3)


def test_the_largest_counts_that_64_bits_hold_do_not_overflow() -> None:
    total = summed(*[(torch.tensor([1e15]), float(2**64 - 1))] * 3).drain()
    assert (total / (3.0 * (2**64 - 1))).tolist() == pytest.approx([1e15])
