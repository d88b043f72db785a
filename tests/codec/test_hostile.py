"""Payloads from someone who means harm: refused with a reason, before anything large is allocated."""

import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_stream.codec import SLICE, decode, encode, max_payload_size
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecSpec
from tests.codec.samples import FLOAT32, SPECS, generator, int4, int8, name, normal, topk, topk2

MAGIC = b"\x28\xb5\x2f\xfd"
OUTCOMES = {Reason.TRUNCATED, Reason.CORRUPT_PAYLOAD, Reason.DECOMPRESSION_BOMB, None}


def _payload(numel: int, spec: CodecSpec) -> bytes:
    return b"".join(encode(normal(numel), spec, generator=generator()))


def _framed(frame: bytes) -> bytes:
    return struct.pack("<I", len(frame)) + frame


def _pack(body: bytes) -> bytes:
    return _framed(zstandard.ZstdCompressor().compress(body))


def _reason(payload: bytes, spec: CodecSpec, numel: int) -> Reason:
    with pytest.raises(Rejected) as caught:
        decode([payload], spec, numel)
    return caught.value.reason


def _outcome(parts: Sequence[bytes], spec: CodecSpec, numel: int) -> Reason | None:
    try:
        decode(parts, spec, numel)
    except Rejected as rejected:
        return rejected.reason
    return None


@contextmanager
def _at_most(size: int) -> Iterator[None]:
    """Fail if more than `size` bytes of Python memory, which zstd's output is, are taken at one time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def _bomb(size: int) -> bytes:
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    zeros = bytes(1 << 24)
    return b"".join([*(stream.compress(zeros) for _ in range(size >> 24)), stream.flush()])


def _raw_frame(body: bytes, window: int, claimed: int) -> bytes:
    """A frame with one stored block, built by hand: content size and window stand in its header as told."""
    header = MAGIC + bytes([0x80, window]) + struct.pack("<I", claimed)
    return header + struct.pack("<I", len(body) << 3 | 1)[:3] + body


def test_a_gibibyte_of_zeros_is_not_unpacked() -> None:
    frame = _bomb(1 << 30)
    assert len(frame) < 1 << 18
    payload = _framed(frame)
    with _at_most(1 << 20):
        assert _reason(payload, FLOAT32, SLICE) is Reason.DECOMPRESSION_BOMB


def test_a_frame_that_holds_more_than_it_claims_is_cut_off() -> None:
    frame = bytearray(_bomb(1 << 30))
    at = frame.index(struct.pack("<I", 1 << 30), 5)
    frame[at : at + 4] = struct.pack("<I", 4 * SLICE)
    payload = _framed(bytes(frame))
    with _at_most(9 * SLICE):
        assert _reason(payload, FLOAT32, SLICE) is Reason.CORRUPT_PAYLOAD


def test_a_frame_that_does_not_name_its_size_is_refused() -> None:
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    frame = stream.compress(bytes(400)) + stream.flush()
    assert _reason(_framed(frame), FLOAT32, 100) is Reason.CORRUPT_PAYLOAD


def test_a_window_larger_than_the_body_needs_is_refused() -> None:
    body = bytes(400)
    assert decode([_framed(_raw_frame(body, 0, 400))], FLOAT32, 100).tolist() == [0.0] * 100
    assert _reason(_framed(_raw_frame(body, 17 << 3, 400)), FLOAT32, 100) is Reason.DECOMPRESSION_BOMB


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_body_larger_than_the_slice_can_need_is_refused(spec: CodecSpec) -> None:
    assert _reason(_pack(bytes(5000)), spec, 100) is Reason.DECOMPRESSION_BOMB


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_body_smaller_than_the_slice_needs_is_refused(spec: CodecSpec) -> None:
    assert _reason(_pack(bytes(1)), spec, 100) is Reason.CORRUPT_PAYLOAD
    assert _reason(_pack(b""), spec, 100) is Reason.CORRUPT_PAYLOAD


def test_a_frame_length_beyond_any_frame_is_refused_before_the_bytes_are_gathered() -> None:
    def parts() -> Iterator[bytes]:
        yield struct.pack("<I", 0xFFFFFFFF)
        raise AssertionError("read on")

    with pytest.raises(Rejected) as caught:
        decode(parts(), FLOAT32, SLICE)
    assert caught.value.reason is Reason.DECOMPRESSION_BOMB


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_every_truncation_is_told(spec: CodecSpec) -> None:
    payload = _payload(300, spec)
    for size in range(len(payload)):
        assert _reason(payload[:size], spec, 300) is Reason.TRUNCATED


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_trailing_bytes_are_told(spec: CodecSpec) -> None:
    payload = _payload(300, spec)
    assert _reason(payload + b"\0", spec, 300) is Reason.CORRUPT_PAYLOAD
    assert _reason(payload + payload, spec, 300) is Reason.CORRUPT_PAYLOAD
    assert _reason(b"\0", spec, 0) is Reason.CORRUPT_PAYLOAD


def test_bytes_after_the_frame_are_told() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(400))
    for extra in (b"\0", frame, b"\x50\x2a\x4d\x18\0\0\0\0"):
        assert _reason(_framed(frame + extra), FLOAT32, 100) is Reason.CORRUPT_PAYLOAD


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x28\xb5",
        b"no zstd at all",
        b"\x50\x2a\x4d\x18\x90\x01\0\0" + bytes(400),
        MAGIC + bytes(20),
        _raw_frame(bytes(399), 0, 400),
        _raw_frame(bytes(401), 0, 400),
    ],
)
def test_what_is_no_frame_of_that_size_is_told(frame: bytes) -> None:
    assert _reason(_framed(frame), FLOAT32, 100) is Reason.CORRUPT_PAYLOAD


def test_a_frame_that_needs_a_dictionary_is_told() -> None:
    samples: list[bytes | bytearray | memoryview[int]] = [normal(50, seed).numpy().tobytes() for seed in range(50)]
    dictionary = zstandard.train_dictionary(4096, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(400))
    assert _reason(_framed(frame), FLOAT32, 100) is Reason.CORRUPT_PAYLOAD


# Two of ten elements: one scale (bfloat16 1.0), two steps, then the gaps.
@pytest.mark.parametrize("gaps", [b"\0", b"\0\xff", b"\x05\x04", b"\x0a\0", b"\xff\0\0", b"\0\0\0"])
def test_gaps_that_contradict_the_slice_are_told(gaps: bytes) -> None:
    spec = topk(0.2, 8, 0)
    good = _pack(b"\x80\x3f\x01\x02\x03\x05")
    assert decode([good], spec, 10).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    expected = Reason.DECOMPRESSION_BOMB if len(gaps) > 2 else Reason.CORRUPT_PAYLOAD
    assert _reason(_pack(b"\x80\x3f\x01\x02" + gaps), spec, 10) is expected


def test_gaps_with_room_for_escapes_are_checked_too() -> None:
    spec = topk(0.001, 8, 0)
    head = b"\x80\x3f\x01"
    assert decode([_pack(head + b"\xff\xff\x05")], spec, 600).nonzero().tolist() == [[515]]
    for gaps in (b"\xff\xff\x5a", b"\xff\xff\xff", b"\x05\xff", b"\0\0", b"\xff\0\0"):
        assert _reason(_pack(head + gaps), spec, 600) is Reason.CORRUPT_PAYLOAD


# Chunks of 64 and 6 elements that keep 2 and 1: magnitudes 1 and 2, signs, choices, then the gaps.
HEAD = b"\x80\x80\0\0\x3f\x3f\x40\x40\x01\x02"


@pytest.mark.parametrize(
    "gaps",
    [
        b"\x40\0\0",  # the first leads out of its chunk
        b"\x05\x3a\0",  # the second does
        b"\0\x3f\0",
        b"\0\0\x06",  # the last leads out of the slice
        b"\0\0\xfe",
        b"\0\0\xff",  # it never ends
        b"\xff\0\0",  # only two
        b"\0\0",
        b"\0\0\0\0",
    ],
)
def test_gaps_that_lead_out_of_their_chunk_are_told(gaps: bytes) -> None:
    spec = topk2(64, 2)
    good = decode([_pack(HEAD + b"\x05\x39\x05")], spec, 70)
    assert good.nonzero().flatten().tolist() == [5, 63, 69]
    assert good[[5, 63, 69]].tolist() == [-1.0, 2.0, 1.0]
    expected = Reason.DECOMPRESSION_BOMB if len(gaps) > 3 else Reason.CORRUPT_PAYLOAD
    assert _reason(_pack(HEAD + gaps), spec, 70) is expected


def test_long_gaps_that_lead_out_of_their_chunk_are_told() -> None:
    spec = topk2(1024, 1)
    head = b"\x80\x80\0\0\x3f\x3f\x40\x40\0\0"
    good = head + b"\xff\xff\xff\xff\x03\xff\x01"
    assert decode([_pack(good)], spec, 1324).nonzero().tolist() == [[1023], [1280]]
    for gaps in (b"\xff\xff\xff\xff\x04\xff\0", b"\xff\xff\xff\xff\x03\xff\x2d", b"\xff\xff\xff\xff\xff\0\0"):
        assert _reason(_pack(head + gaps), spec, 1324) is Reason.CORRUPT_PAYLOAD


@pytest.mark.parametrize("high", [b"\x80\x7f", b"\xc0\x7f", b"\x80\xff", b"\x80\xbf", b"\0\x80", b"\xff\xff"])
def test_magnitudes_that_are_negative_or_not_finite_are_told(high: bytes) -> None:
    body = bytes([0x80, high[0], 0x3F, high[1], 0, 0, 7])
    assert _reason(_pack(body), topk2(64, 1), 64) is Reason.CORRUPT_PAYLOAD
    sound = bytes([0x80, 0x7F, 0x3F, 0x7F, 0, 1, 7])  # the largest that there is
    assert decode([_pack(sound)], topk2(64, 1), 64)[7] == torch.finfo(torch.bfloat16).max


def test_scales_that_are_not_finite_are_left_to_the_aggregator() -> None:
    for scale in (b"\x80\x7f", b"\xc0\x7f"):
        assert not decode([_pack(scale + b"\x01")], int8(), 1).isfinite().any()
        assert not decode([_pack(scale + b"\x89")], int4(), 1).isfinite().any()


def _mutated(payload: bytes, edits: list[tuple[int, int]], end: int | None) -> bytes:
    damaged = bytearray(payload)
    for at, value in edits:
        damaged[at % len(damaged)] ^= value
    return bytes(damaged[:end])


@pytest.mark.parametrize("pack", [None, _pack], ids=["payload", "body"])
@settings(max_examples=150)
@given(
    spec=st.sampled_from(SPECS),
    numel=st.integers(1, 2000),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=8),
    end=st.none() | st.integers(0, 1 << 13),
)
def test_damage_is_decoded_or_rejected(
    pack: Callable[[bytes], bytes] | None,
    spec: CodecSpec,
    numel: int,
    edits: list[tuple[int, int]],
    end: int | None,
) -> None:
    payload = _payload(numel, spec)
    if pack:
        damaged = pack(_mutated(zstandard.ZstdDecompressor().decompress(payload[4:]), edits, end))
    else:
        damaged = _mutated(payload, edits, end)
    with _at_most(2 * max_payload_size(spec, numel) + (1 << 17)):
        assert _outcome([damaged], spec, numel) in OUTCOMES


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=200), max_size=4), st.sampled_from(SPECS), st.integers(0, 300))
def test_noise_is_decoded_or_rejected(parts: list[bytes], spec: CodecSpec, numel: int) -> None:
    assert _outcome(parts, spec, numel) in OUTCOMES


def test_a_rejected_payload_of_the_wrong_length_names_its_reason() -> None:
    payload = _payload(SLICE + 100, int8())
    assert _reason(payload, int8(), SLICE) is Reason.CORRUPT_PAYLOAD
    assert _reason(payload, int8(), 2 * SLICE + 100) is Reason.CORRUPT_PAYLOAD
    assert _reason(payload, int8(), SLICE + 101) is Reason.CORRUPT_PAYLOAD
    assert torch.equal(decode([payload], int8(), SLICE + 100), decode([payload], int8(), SLICE + 100))
