"""Versions that move one fragment: what readers make of them, bit for bit, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmos_stream.codec import Layout, delta_codec, encode_delta, weights_digest
from llmos_stream.config import VersionSettings
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.versions import FULL_CODEC, Origin, apply_version, decode_version, delta_version, encode_version
from llmos_stream.types import VersionHead, VersionKind
from llmos_stream.wire import Parts

LAYOUT = Layout.of(
    {"a": torch.zeros(4000), "b": torch.zeros(3000), "c": torch.zeros(5000), "mean": torch.zeros(7)}, ["mean"]
)
INT4 = delta_codec(VersionSettings())
ORIGIN = Origin(0, (), {}, 1000)


def _weights(seed: int) -> Tensor:
    return torch.randn(LAYOUT.numel, generator=torch.Generator().manual_seed(seed))


def _moved(before: Tensor, elements: tuple[int, int]) -> tuple[Tensor, VersionHead, Parts]:
    """What a version makes of these weights that moves one range, and its message."""
    after = before.clone()
    after[slice(*elements)] += 0.01 * _weights(2)[slice(*elements)]
    here, there = (LAYOUT.moving(flat, elements)[0] for flat in (before, after))
    frames = encode_delta(here, there, None, INT4).parts
    return after, *delta_version(1, after, LAYOUT, ORIGIN, INT4, frames, elements)


@pytest.mark.parametrize("place", range(3))
def test_readers_have_what_the_aggregator_has_bit_for_bit(place: int) -> None:
    fragment, before = LAYOUT.fragments(3)[place], _weights(1)
    after, head, parts = _moved(before, fragment.range)
    assert (head.kind, head.range, head.layout_digest) == (VersionKind.FRAGMENT, fragment.range, LAYOUT.digest)
    assert not torch.equal(after, before)
    first = decode_version(*encode_version(0, before, LAYOUT, replace(ORIGIN, parent=None)))
    read = apply_version(first, head, parts)
    assert torch.equal(read.weights, after)
    assert weights_digest(read.weights) == head.weights_digest
    outside = [flat.clone().index_fill_(0, torch.arange(*fragment.range), 0.0) for flat in (before, read.weights)]
    assert torch.equal(*outside)


def test_a_version_is_smaller_by_the_number_of_fragments() -> None:
    before = _weights(1)
    sizes = [_moved(before, fragment.range)[1].payload_size for fragment in LAYOUT.fragments(3)]
    _, whole, _ = _moved(before, (0, LAYOUT.numel))
    assert max(sizes) < whole.payload_size / 2
    assert sum(sizes) < 1.1 * whole.payload_size


@pytest.mark.parametrize("elements", [(0, 12_001), (12_000, 12_007), (7000, 12_003), (0, 12_008)])
def test_a_range_that_is_no_fragment_is_refused_before_anything_is_read(elements: tuple[int, int]) -> None:
    before = _weights(1)
    _, head, parts = _moved(before, (7000, 12_007))
    first = decode_version(*encode_version(0, before, LAYOUT, replace(ORIGIN, parent=None)))
    with pytest.raises(Rejected) as caught:
        apply_version(first, replace(head, range=elements), parts)
    assert caught.value.reason is Reason.WRONG_LAYOUT
    assert torch.equal(first.weights, before)


def test_another_range_than_that_of_the_payload_is_refused() -> None:
    before = _weights(1)
    _, head, parts = _moved(before, (0, 4000))
    first = decode_version(*encode_version(0, before, LAYOUT, replace(ORIGIN, parent=None)))
    with pytest.raises(Rejected):
        apply_version(first, replace(head, range=(4000, 7000)), parts)


def test_a_full_version_may_say_which_range_moved() -> None:
    after = _weights(3)
    head, parts = encode_version(4, after, LAYOUT, ORIGIN, fragment=(0, 4000))
    assert (head.kind, head.range, head.codec) == (VersionKind.FULL, (0, 4000), FULL_CODEC)
    assert torch.equal(decode_version(head, parts).weights, after)
