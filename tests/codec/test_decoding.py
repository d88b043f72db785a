"""Decoding by several threads, slice by slice, and by way of the quantized form: all give what `decode` gives."""

import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_stream.codec import (
    SLICE,
    Decoding,
    QuantizedForm,
    Workspace,
    decode,
    encode,
    prepare_quantized,
    prepare_visit,
    quantized_bytes,
    slices,
)
from llmos_stream.codec.base import STEP
from llmos_stream.codec.frames import LENGTH
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecSpec
from tests.codec.samples import CASES, FLOAT32, SPECS, generator, int4, int8, name, normal, topk

LONG = 2 * SLICE + STEP + 777
NUMELS = [0, 1, 300, STEP, SLICE + 77]


def _payload(flat: Tensor, spec: CodecSpec) -> list[bytes]:
    return list(encode(flat, spec, generator=generator()))


def _buffer(spec: CodecSpec, numel: int) -> Tensor:
    return torch.full((quantized_bytes(spec, numel),), 0xA5, dtype=torch.uint8)


def _quantized(parts: Sequence[bytes], spec: CodecSpec, numel: int) -> QuantizedForm:
    work, quantized = prepare_quantized(parts, spec, numel, _buffer(spec, numel))
    work.work()
    work.finish()
    return quantized


def _joined(pieces: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0), *pieces])


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def _in_threads(work: Decoding, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work.work) for _ in range(threads)]:
            done.result()
    work.finish()


@pytest.mark.parametrize("numel", NUMELS)
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_all_ways_give_the_same_bits(spec: CodecSpec, numel: int) -> None:
    parts = _payload(normal(numel), spec)
    expected = decode(parts, spec, numel)
    assert _same(_joined([part.clone() for part in slices(parts, spec, numel)]), expected)
    quantized = _quantized(parts, spec, numel)
    for _ in range(2):
        assert _same(_joined([part.clone() for part in quantized.values(Workspace())]), expected)
    work, quantized = prepare_quantized(parts, spec, numel, _buffer(spec, numel))
    _in_threads(work, 2)
    assert _same(_joined([part.clone() for part in quantized.values(Workspace())]), expected)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_compact_form_keeps_every_bit(spec: CodecSpec) -> None:
    for case, values in CASES.items():
        if values.numel():
            parts = _payload(values, spec)
            expected = decode(parts, spec, values.numel())
            quantized = _quantized(parts, spec, expected.numel())
            assert _same(_joined([part.clone() for part in quantized.values(Workspace())]), expected), case
            assert math.isnan(quantized.largest) or quantized.largest >= float(expected.abs().max()), case


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_factor_is_one_multiplication(spec: CodecSpec) -> None:
    parts = _payload(normal(5000), spec)
    expected = decode(parts, spec, 5000) * 0.3
    workspace = Workspace()
    quantized = _quantized(parts, spec, 5000)
    assert _same(_joined([part.clone() for part in quantized.values(workspace, 0.3)]), expected)
    assert _same(_joined([part.clone() for part in slices(parts, spec, 5000, 0.3)]), expected)
    # What is held is not touched by it.
    assert _same(_joined([part.clone() for part in quantized.values(workspace, 0.3)]), expected)


@pytest.mark.parametrize("spec", [int8(), int4(), topk(0.01, 8, 1), topk(0.3, 32)], ids=name)
def test_the_largest_magnitude_is_bounded_closely(spec: CodecSpec) -> None:
    parts = _payload(normal(SLICE + 5), spec)
    largest = float(decode(parts, spec, SLICE + 5).abs().max())
    assert largest <= _quantized(parts, spec, SLICE + 5).largest <= 1.2 * largest


@pytest.mark.parametrize("scale", [b"\x80\x7f", b"\xc0\x7f", b"\x80\xff"])
@pytest.mark.parametrize("spec", [int8(), int4()], ids=name)
def test_a_scale_that_is_not_finite_gives_no_bound(spec: CodecSpec, scale: bytes) -> None:
    frame = zstandard.ZstdCompressor().compress(scale + b"\x89")
    assert not _quantized([LENGTH.pack(len(frame)) + frame], spec, 1).largest < math.inf


def test_what_the_compact_form_takes() -> None:
    scales = 2 * SLICE // 256
    assert quantized_bytes(int8(), SLICE) == quantized_bytes(int4(), SLICE) == SLICE + scales
    assert quantized_bytes(FLOAT32, 3 * SLICE) == 12 * SLICE
    assert quantized_bytes(topk(0.01), SLICE) < 0.081 * SLICE
    assert quantized_bytes(topk(1.0), SLICE) == 4 * SLICE
    with pytest.raises(ValueError, match="bytes are needed"):
        prepare_quantized([], int8(), 100, torch.empty(99, dtype=torch.uint8))


@pytest.mark.parametrize("spec", [FLOAT32, int8(), topk(0.01, 8, 1)], ids=name)
def test_every_value_is_seen_once_by_whichever_thread(spec: CodecSpec) -> None:
    parts = _payload(normal(LONG), spec)
    expected = decode(parts, spec, LONG)
    makers: list[Callable[[Callable[[int, Tensor], None]], Decoding]] = [
        lambda visit: prepare_quantized(parts, spec, LONG, _buffer(spec, LONG), visit)[0],
        lambda visit: prepare_visit(parts, spec, LONG, visit),
    ]
    for make in makers:
        found: dict[int, Tensor] = {}
        _in_threads(make(lambda begin, values, found=found: found.update({begin: values.clone()})), 3)  # type: ignore[misc]
        assert _same(torch.cat([found[begin] for begin in sorted(found)]), expected)


def _outcome(action: Callable[[], object]) -> Reason | None:
    try:
        action()
    except Rejected as rejected:
        return rejected.reason
    return None


@settings(max_examples=100)
@given(
    spec=st.sampled_from(SPECS),
    numel=st.integers(1, 2000),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=4),
    end=st.none() | st.integers(0, 1 << 13),
    extra=st.binary(max_size=3),
)
def test_damage_is_told_alike_by_all_ways(
    spec: CodecSpec, numel: int, edits: list[tuple[int, int]], end: int | None, extra: bytes
) -> None:
    damaged = bytearray(b"".join(_payload(normal(numel), spec)))
    for at, value in edits:
        damaged[at % len(damaged)] ^= value
    parts = [bytes(damaged[:end]) + extra]
    expected = _outcome(lambda: decode(parts, spec, numel))
    assert _outcome(lambda: list(slices(parts, spec, numel))) is expected
    assert _outcome(lambda: _quantized(parts, spec, numel)) is expected
    assert _outcome(lambda: _in_threads(prepare_visit(parts, spec, numel, lambda begin, values: None), 2)) is expected


def _bomb() -> bytes:
    frame = zstandard.ZstdCompressor().compress(bytes(5 * SLICE))
    return LENGTH.pack(len(frame)) + frame


def test_of_several_errors_the_first_in_the_payload_is_told() -> None:
    good = _payload(normal(SLICE), int8())[0]
    corrupt = bytearray(good)
    corrupt[-1] ^= 0xFF
    corrupt[40:1000] = bytes(960)
    for broken, reason in (
        ([good, bytes(corrupt), good, _bomb()], Reason.CORRUPT_PAYLOAD),
        ([good, _bomb(), good, bytes(corrupt)], Reason.DECOMPRESSION_BOMB),
        ([good, good, bytes(corrupt), good[:-1]], Reason.CORRUPT_PAYLOAD),
        ([good, good, good, good[:-1]], Reason.TRUNCATED),
        ([good, good, good, good, b"\0"], Reason.CORRUPT_PAYLOAD),
        ([good, good, good, good[:2]], Reason.TRUNCATED),
    ):
        for threads in (1, 4):
            work, _ = prepare_quantized(broken, int8(), 4 * SLICE, _buffer(int8(), 4 * SLICE))
            with pytest.raises(Rejected) as caught:
                _in_threads(work, threads)
            assert caught.value.reason is reason


def test_an_error_stops_the_cutting() -> None:
    drawn = []

    def parts() -> list[bytes]:
        drawn.append(1)
        return _payload(normal(SLICE), int8())

    def endless() -> object:
        while True:
            yield from parts()

    work = prepare_visit(endless(), int8(), 100 * SLICE, _refuse)  # type: ignore[arg-type]
    work.work()
    with pytest.raises(RuntimeError, match="visit enough"):
        work.finish()
    assert len(drawn) == 1


def _refuse(begin: int, values: Tensor) -> None:
    raise RuntimeError("visit enough")


def test_frames_with_a_checksum_and_blocks_of_one_byte_end_where_they_end() -> None:
    body = struct.pack("<H", 0) + bytes(255)  # one scale of zero, so that every block is one repeated byte
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(body)
    content = LENGTH.pack(len(frame)) + frame
    assert decode([content], int8(), 255).tolist() == [0.0] * 255
    for cut in range(1, 5):
        short = frame[:-cut]
        with pytest.raises(Rejected) as caught:
            decode([LENGTH.pack(len(short)) + short], int8(), 255)
        assert caught.value.reason is Reason.CORRUPT_PAYLOAD
