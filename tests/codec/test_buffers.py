"""Payloads of two parts: parameters through any codec, then the values of buffers, which lose nothing."""

import math

import pytest
import torch
from torch import Tensor

from llmos_stream.codec import (
    SLICE,
    apply_delta,
    decode,
    encode,
    encode_delta,
    max_payload_size,
    prepare_quantized,
    prepare_visit,
    quantized_bytes,
    slices,
    with_buffers,
)
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecSpec
from tests.codec.samples import SPECS, any_bits, generator, int4, int8, name, normal

NUMEL = 5000
BUFFERS = torch.tensor([-math.inf, math.inf, 1e-41, -0.0, 0.1, 3e38])


def _payload(spec: CodecSpec, delta: Tensor, buffers: Tensor = BUFFERS) -> list[bytes]:
    return list(with_buffers(encode(delta, spec, generator=generator()), buffers))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("spec", SPECS, ids=name)
@pytest.mark.parametrize("numel", [0, NUMEL])
def test_every_way_to_decode_gives_the_buffers_bit_for_bit(spec: CodecSpec, numel: int) -> None:
    delta = normal(numel)
    parts = _payload(spec, delta)
    alone = decode(encode(delta, spec, generator=generator()), spec, numel)

    found = torch.empty_like(BUFFERS)
    assert _same(decode(parts, spec, numel, buffers=found), alone)
    assert _same(found, BUFFERS)

    found = torch.empty_like(BUFFERS)
    work, _ = prepare_quantized(
        parts, spec, numel, torch.empty(quantized_bytes(spec, numel), dtype=torch.uint8), None, found
    )
    work.work()
    work.finish()
    assert _same(found, BUFFERS)

    found = torch.empty_like(BUFFERS)
    work = prepare_visit(parts, spec, numel, lambda begin, values: None, found)
    work.work()
    work.finish()
    assert _same(found, BUFFERS)

    walked = [part.clone() for part in slices(parts, spec, numel, buffers=BUFFERS.numel())]
    assert _same(torch.cat([torch.zeros(0), *walked]), alone)


def test_buffers_of_several_slices() -> None:
    buffers, found = any_bits(SLICE + 3), torch.empty(SLICE + 3)
    decode(_payload(int8(), normal(10), buffers), int8(), 10, buffers=found)
    assert _same(found, buffers)


def test_without_buffers_the_payload_is_what_it_was() -> None:
    delta = normal(NUMEL)
    assert _payload(int8(), delta, torch.zeros(0)) == list(encode(delta, int8(), generator=generator()))


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_bound_holds_for_both_parts(spec: CodecSpec) -> None:
    size = sum(map(len, _payload(spec, normal(NUMEL), any_bits(777))))
    assert size <= max_payload_size(spec, NUMEL, 777)
    assert max_payload_size(spec, NUMEL, 0) == max_payload_size(spec, NUMEL)


def _outcome(parts: list[bytes], buffers: Tensor | None) -> Reason:
    with pytest.raises(Rejected) as caught:
        decode(parts, int8(), NUMEL, buffers=buffers)
    return caught.value.reason


def test_what_is_missing_or_too_much_is_refused() -> None:
    whole = _payload(int8(), normal(NUMEL))
    assert _outcome(whole[:-1], torch.empty(6)) is Reason.TRUNCATED
    assert _outcome(whole, None) is Reason.CORRUPT_PAYLOAD
    assert _outcome([*whole, whole[-1]], torch.empty(6)) is Reason.CORRUPT_PAYLOAD
    assert _outcome(whole, torch.empty(7)) is Reason.CORRUPT_PAYLOAD
    assert _outcome(whole, torch.empty(5)) is Reason.DECOMPRESSION_BOMB


def test_a_delta_version_ends_with_the_new_values() -> None:
    spec = int4(256, 0)
    parent, target = normal(NUMEL + 6), normal(NUMEL + 6, 1)
    target[NUMEL:] = BUFFERS
    reader = parent.clone()
    frames, _ = encode_delta(parent[:NUMEL], target[:NUMEL], None, spec)
    parts = list(with_buffers(frames, target[NUMEL:]))
    apply_delta(reader[:NUMEL], parts, spec, reader[NUMEL:])
    assert _same(reader, target)
