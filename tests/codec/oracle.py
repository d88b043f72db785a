"""The codecs' bodies read as the module docstrings specify them, one element at a time and without torch's help."""

import math
import struct
from collections.abc import Sequence

from llmos_stream.types import CodecId, CodecSpec


def decode_slowly(spec: CodecSpec, body: bytes, count: int) -> list[float]:
    match CodecId(spec.id):
        case CodecId.FLOAT32:
            return _float32(body, count)
        case CodecId.FLOAT16:
            return [struct.unpack("<e", bytes(pair))[0] for pair in _columns(body, count, 2)]
        case CodecId.BFLOAT16:
            return _bfloat16(body, count)
        case CodecId.INT8:
            return _blocks(body, count, int(spec.params["block"]), 1)
        case CodecId.INT4:
            return _blocks(body, count, int(spec.params["block"]), 2)
        case CodecId.TOPK:
            return _topk(spec, body, count)
        case CodecId.TOPK2:
            return _topk2(int(spec.params["chunk"]), int(spec.params["keep"]), body, count)


def largest_slowly(values: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))[:count])


def _columns(body: bytes, count: int, width: int) -> list[list[int]]:
    assert len(body) == count * width
    return [[body[row * count + place] for row in range(width)] for place in range(count)]


def _float32(body: bytes, count: int) -> list[float]:
    return [struct.unpack("<f", bytes(row))[0] for row in _columns(body, count, 4)]


def _bfloat16(body: bytes, count: int) -> list[float]:
    return [struct.unpack("<f", bytes([0, 0, *pair]))[0] for pair in _columns(body, count, 2)]


def _blocks(body: bytes, count: int, block: int, to_a_byte: int) -> list[float]:
    blocks = math.ceil(count / block)
    scales = _bfloat16(body[: 2 * blocks], blocks)
    steps = body[2 * blocks :]
    assert len(steps) == math.ceil(count / to_a_byte)
    values = []
    for place in range(count):
        if to_a_byte == 1:
            step = steps[place] - 256 if steps[place] > 127 else steps[place]
        else:
            step = (steps[place // 2] >> 4 * (place % 2) & 15) - 8
        values.append(step * scales[place // block])
    return values


def _topk(spec: CodecSpec, body: bytes, count: int) -> list[float]:
    kept = math.ceil(spec.params["fraction"] * count)
    if spec.params["bits"] == 32:
        size = 4 * kept
        values = _float32(body[:size], kept)
    else:
        size = 2 * math.ceil(kept / 4096) + kept
        values = _blocks(body[:size], kept, 4096, 1)
    result = [0.0] * count
    place = -1
    remaining = iter(values)
    gap = 0
    for byte in body[size:]:
        gap += byte
        if byte < 255:
            place += gap + 1
            result[place] = next(remaining)
            gap = 0
    assert next(remaining, None) is None
    return result


def _topk2(chunk: int, keep: int, body: bytes, count: int) -> list[float]:
    lengths = [min(chunk, count - begin) for begin in range(0, count, chunk)]
    kept = [math.ceil(keep * length / chunk) for length in lengths]
    magnitudes = _bfloat16(body[: 4 * len(lengths)], 2 * len(lengths))
    at = 4 * len(lengths)
    size = math.ceil(sum(kept) / 8)
    negative, high = (
        [byte >> place & 1 for byte in body[begin : begin + size] for place in range(8)] for begin in (at, at + size)
    )
    gaps = iter(body[at + 2 * size :])
    result = []
    number = 0
    for index, (length, few) in enumerate(zip(lengths, kept, strict=True)):
        values = [0.0] * length
        place = -1
        for _ in range(few):
            place += 1
            while (byte := next(gaps)) == 255:
                place += 255
            place += byte
            magnitude = magnitudes[high[number] * len(lengths) + index]
            values[place] = -magnitude if negative[number] else magnitude
            number += 1
        result += values
    assert next(gaps, None) is None
    return result


def two_means_slowly(magnitudes: Sequence[float]) -> float:
    """The least squared error with which two values can stand for all."""
    ordered = sorted(magnitudes)
    groups = ((ordered[:split], ordered[split:]) for split in range(len(ordered)))
    return min(sum(_variance(group) for group in pair) for pair in groups)


def _variance(group: Sequence[float]) -> float:
    mean = math.fsum(group) / len(group) if group else 0.0
    return math.fsum((value - mean) ** 2 for value in group)
