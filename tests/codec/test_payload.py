import hashlib
import itertools
import struct
from collections.abc import Iterator

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_stream.codec import SLICE, decode, encode, max_payload_size, weights_digest
from llmos_stream.codec.frames import PartReader
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecSpec, Part
from tests.codec.oracle import decode_slowly
from tests.codec.samples import BFLOAT16, FLOAT16, FLOAT32, SPECS, any_bits, generator, int4, int8, name, normal, topk

LONG = 2 * SLICE + 12_345
"""Elements of a vector with two whole slices and a ragged one."""


def _payload(flat: torch.Tensor, spec: CodecSpec, level: int = 1, seed: int = 0) -> list[bytes]:
    return list(encode(flat, spec, level=level, generator=generator(seed)))


def _incompressible(spec: CodecSpec, numel: int) -> torch.Tensor:
    if spec in (FLOAT32, BFLOAT16):
        return any_bits(numel)
    if spec == FLOAT16:
        return any_bits(numel).view(torch.float16)[:numel].float()
    return torch.rand(numel, generator=generator()) * 2 - 1


def _cut(payload: bytes, cuts: list[int]) -> list[Part]:
    edges = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    view = memoryview(payload)
    return [view[begin:end] for begin, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_frames_are_as_specified(spec: CodecSpec) -> None:
    flat = torch.cat([torch.zeros(SLICE), normal(700)])
    frames = _payload(flat, spec)
    assert len(frames) == 2
    decoded = decode(frames, spec, flat.numel())
    (length,) = struct.unpack_from("<I", frames[1])
    frame = frames[1][4:]
    assert length == len(frame)
    header = zstandard.get_frame_parameters(frame)
    body = zstandard.ZstdDecompressor().decompress(frame)
    assert header.content_size == len(body)
    assert header.window_size <= max(1024, 2 * len(body))
    assert decoded[SLICE:].tolist() == torch.tensor(decode_slowly(spec, body, 700)).tolist()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_slices_are_independent_of_one_another(spec: CodecSpec) -> None:
    flat = normal(LONG)
    frames = _payload(flat, spec)
    whole = decode(frames, spec, LONG)
    assert torch.equal(whole[SLICE : 2 * SLICE], decode(frames[1:2], spec, SLICE))
    assert torch.equal(whole[2 * SLICE :], decode(frames[2:], spec, LONG - 2 * SLICE))


def test_an_empty_vector_has_an_empty_payload() -> None:
    for spec in SPECS:
        assert _payload(torch.zeros(0), spec) == []
        assert max_payload_size(spec, 0) == 0
        assert decode([], spec, 0).numel() == 0
        assert decode([b"", b""], spec, 0).numel() == 0


@settings(max_examples=60)
@given(
    spec=st.sampled_from(SPECS),
    numel=st.integers(0, 3000),
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 2**31), max_size=20),
)
def test_payloads_may_be_cut_anywhere(spec: CodecSpec, numel: int, seed: int, cuts: list[int]) -> None:
    frames = _payload(normal(numel, seed), spec)
    expected = decode(frames, spec, numel)
    assert torch.equal(decode(_cut(b"".join(frames), cuts), spec, numel), expected)


def test_long_payloads_may_be_cut_anywhere_too() -> None:
    flat = normal(LONG)
    payload = b"".join(_payload(flat, int8()))
    parts = [memoryview(payload)[at : at + 100_003] for at in range(0, len(payload), 100_003)]
    assert torch.equal(decode(parts, int8(), LONG), decode([payload], int8(), LONG))


@settings(max_examples=100)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300), st.sampled_from(SPECS[3:]))
def test_any_finite_vector_survives(values: list[float], spec: CodecSpec) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    back = decode(_payload(flat, spec), spec, flat.numel())
    largest = float(flat.abs().max()) if values else 0.0
    assert back.isfinite().all()
    # In no codec here does an element end up further away than the largest magnitude of all.
    assert ((back.double() - flat.double()).abs() <= largest).all()


@settings(max_examples=100)
@given(st.lists(st.floats(width=32), max_size=300))
def test_any_vector_at_all_survives_float32(values: list[float]) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    back = decode(_payload(flat, FLOAT32), FLOAT32, flat.numel())
    assert torch.equal(back.view(torch.int32), flat.view(torch.int32))


def test_out_is_filled_and_returned() -> None:
    flat = normal(5000)
    out = torch.full((5000,), 9.0)
    assert decode(_payload(flat, FLOAT32), FLOAT32, 5000, out) is out
    assert torch.equal(out, flat)
    with pytest.raises(ValueError, match="flat vector"):
        decode([], FLOAT32, 5000, torch.empty(4999))


@pytest.mark.parametrize("numel", [1, 2, 300, 40_000, SLICE + 1])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_max_payload_size_is_an_upper_bound(spec: CodecSpec, numel: int) -> None:
    flat = _incompressible(spec, numel)
    for level in (1, 3) if numel > 50_000 else (1, 3, 9, 19):
        size = sum(map(len, _payload(flat, spec, level)))
        assert size <= max_payload_size(spec, numel)


@pytest.mark.parametrize("spec", [FLOAT32, FLOAT16, BFLOAT16, int8(), int4()], ids=name)
def test_max_payload_size_is_not_far_above(spec: CodecSpec) -> None:
    assert sum(map(len, _payload(_incompressible(spec, SLICE), spec))) > 0.97 * max_payload_size(spec, SLICE)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_lost_is_what_decoding_does_not_bring_back(spec: CodecSpec) -> None:
    flat = normal(SLICE + 777)
    residual = torch.full_like(flat, 5.0)
    parts = list(encode(flat, spec, generator=generator(), residual=residual))
    assert parts == _payload(flat, spec)
    assert torch.equal(residual, flat - decode(parts, spec, flat.numel()))


def test_lost_may_be_the_input_itself() -> None:
    flat = normal(SLICE + 777)
    total = flat.clone()
    parts = list(encode(total, int4(), generator=generator(), residual=total))
    assert torch.equal(total, flat - decode(parts, int4(), flat.numel()))


@pytest.mark.parametrize("spec", [int8(), int4(), topk(0.1, 8, 1)], ids=name)
def test_the_same_seed_gives_the_same_bytes(spec: CodecSpec) -> None:
    flat = normal(SLICE + 777)
    assert _payload(flat, spec, seed=1) == _payload(flat, spec, seed=1)
    assert _payload(flat, spec, seed=1) != _payload(flat, spec, seed=2)


def test_no_global_randomness_is_touched() -> None:
    before = torch.get_rng_state()
    for spec in SPECS:
        _payload(normal(1000), spec)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_number_of_threads_changes_nothing(spec: CodecSpec) -> None:
    flat = normal(SLICE + 77_777)
    threads = torch.get_num_threads()
    visit = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            parts = _payload(flat, spec)
            visit.append((parts, decode(parts, spec, flat.numel())))
    finally:
        torch.set_num_threads(threads)
    assert visit[0][0] == visit[1][0]
    assert torch.equal(visit[0][1], visit[1][1])


def test_each_slice_is_decoded_before_the_next_frame_is_made() -> None:
    out = torch.full((3 * SLICE,), float("nan"))
    done: list[int] = []

    def parts() -> Iterator[bytes]:
        for frame in encode(normal(3 * SLICE), FLOAT16):
            done.append(int(out.isfinite().sum()))
            yield frame

    decode(parts(), FLOAT16, 3 * SLICE, out)
    assert done == [0, SLICE, 2 * SLICE]


def test_bad_arguments_are_told_at_once() -> None:
    with pytest.raises(Rejected) as caught:
        encode(normal(3), CodecSpec(99))
    assert caught.value.reason is Reason.UNKNOWN_CODEC
    with pytest.raises(ValueError, match="flat vector"):
        encode(normal(3).double(), FLOAT32)
    with pytest.raises(ValueError, match="3"):
        encode(normal(3), FLOAT32, residual=torch.empty(4))


def test_a_vector_that_requires_grad_is_only_read() -> None:
    flat = normal(100).requires_grad_()
    assert torch.equal(decode(_payload(flat, FLOAT32), FLOAT32, 100), flat.detach())


def test_weights_digest_is_over_little_endian_float32() -> None:
    assert weights_digest(torch.tensor([1.0, -2.5])) == hashlib.sha256(struct.pack("<2f", 1.0, -2.5)).digest()
    assert weights_digest(torch.zeros(0)) == hashlib.sha256(b"").digest()


def test_reader_does_not_copy_within_a_part() -> None:
    part = bytearray(b"0123456789")
    reader = PartReader([memoryview(part)[:6], memoryview(part)[6:]])
    first = reader.take(4)
    straddling = reader.take(4)
    part[:] = b"x" * 10
    assert bytes(first) == b"xxxx"
    assert bytes(straddling) == b"4567"
