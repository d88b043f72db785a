"""The bytes of bodies, before zstd (whose output varies by version), and their reading by a slow oracle."""

import pytest
import torch
from torch import Tensor

from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import Workspace
from llmos_stream.types import CodecSpec
from tests.codec.oracle import decode_slowly, largest_slowly, two_means_slowly
from tests.codec.samples import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    SPECS,
    generator,
    int4,
    int8,
    name,
    normal,
    topk,
    topk2,
)


def _body(values: Tensor, spec: CodecSpec) -> bytes:
    return b"".join(stream.numpy().tobytes() for stream in codec_for(spec).encode(values, generator(), Workspace()))


GOLDEN = [
    # 1, -2, 3.14159274 (40490fdb), -0, infinity
    (FLOAT32, [1.0, -2.0, 3.14159274, -0.0, float("inf")], "0000db0000 00000f0000 8000490080 3fc040807f"),
    # 3c00, c000, 4248, 8000, 7bff (saturated), 0001 (least denormal)
    (FLOAT16, [1.0, -2.0, 3.14159274, -0.0, 1e38, 6e-8], "00004800ff01 3cc042807b00"),
    # 3f80, c000, 4049, 8000, 7f7f (saturated)
    (BFLOAT16, [1.0, -2.0, 3.14159274, -0.0, 3.4028235e38], "800049007f 3fc040807f"),
    # The scale of the first block is 1 (3f80), of the second 2 (4000). 2.5 rounds to even, 3.5 as well.
    (
        int8(32, 0),
        [127.0, -127.0, 0.4, -0.6, 2.5, 3.5, *[0.0] * 26, 254.0, -3.0],
        "8000 3f40 7f8100ff0204" + "00" * 26 + "7ffe",
    ),
    # Scale 0.5 (3f00): steps 7, -7, 1, 0, -2; the last half byte is empty.
    (int4(32, 0), [3.5, -3.5, 0.6, -0.2, -1.0], "00 3f 1f 89 86"),
    # A block of zeros, and one whose scale would be below 2^-126: zeros too.
    (int8(32, 0), [*[0.0] * 32, 1e-37], "0000 0000" + "00" * 33),
    # Kept: places 1 and 299, the first at gap 1, the second at gap 297 = 255 + 42. Scale 1: steps -127 and 64.
    (topk(2 / 300, 8, 0), [0.0, -127.0, *[0.1] * 297, 64.0], "80 3f 8140 01 ff2a"),
    (topk(0.4, 32), [0.5, 1.0, 0.5, -2.0, 0.5], "0000 0000 8000 3fc0 0101"),
    # Chunks of 64, 64 and 2 elements. The first keeps 3, 1 and -1.25 behind 61 zeros: low 1.125 (3f90), high 3 (4040).
    # The second keeps the first three of equal magnitude: low and high are 2 (4000). The last keeps a zero of two.
    (
        topk2(64, 3),
        [*[0.0] * 61, 3.0, 1.0, -1.25, -2.0, -2.0, 2.0, 2.0, *[0.5] * 60, 0.0, -0.0],
        "900000 400000 3f4000 404000 1c 01 3d0000 000000 00",
    ),
    # A zero is kept, so the low magnitude is 0 and the high one 1 (3f80). Gaps: 0, 499 = 255 + 244, and anew 5.
    (
        topk2(512, 2),
        [*[0.0] * 500, -1.0, *[0.0] * 11, *[0.0] * 5, 2.0],
        "00008000 00403f40 02 02 00 fff4 05",
    ),
    # Equal magnitudes: the earlier ones stay.
    (topk(0.5, 32), [-1.0, 1.0, 1.0, -1.0], "0000 0000 8080 bf3f 0000"),
]


@pytest.mark.parametrize(("spec", "values", "expected"), GOLDEN)
def test_golden_bytes(spec: CodecSpec, values: list[float], expected: str) -> None:
    assert _body(torch.tensor(values), spec).hex() == expected.replace(" ", "")


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_decoding_agrees_with_the_oracle(spec: CodecSpec) -> None:
    for case, values in CASES.items():
        if values.numel():
            body = _body(values, spec)
            least, most = codec_for(spec).bounds(values.numel())
            assert least <= len(body) <= most, case
            out = torch.full_like(values, 7.0)
            codec_for(spec).decode(torch.frombuffer(bytearray(body), dtype=torch.uint8), out, Workspace())
            assert out.tolist() == torch.tensor(decode_slowly(spec, body, values.numel())).tolist(), case


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_nothing_of_one_slice_is_left_in_the_next(spec: CodecSpec) -> None:
    codec = codec_for(spec)
    used = Workspace()
    codec.decode(torch.cat(codec.encode(normal(5000), generator(), used)), torch.empty(5000), used)
    body = torch.cat(codec.encode(normal(333), generator(), used))
    assert body.numpy().tobytes() == _body(normal(333), spec)
    outs = [torch.empty(333), torch.empty(333)]
    for out, workspace in zip(outs, (used, Workspace()), strict=True):
        codec.decode(body, out, workspace)
    assert torch.equal(*outs)


@pytest.mark.parametrize("fraction", [1e-9, 0.001, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("case", ["normal", "zeros", "all equal", "denormal", "huge", "scalar", "all magnitudes"])
def test_topk_keeps_the_largest(case: str, fraction: float) -> None:
    values = CASES[case]
    kept = -(-round(fraction * 10**9) * values.numel() // 10**9)
    out = torch.empty_like(values)
    spec = topk(fraction, 32)
    codec_for(spec).decode(torch.frombuffer(bytearray(_body(values, spec)), dtype=torch.uint8), out, Workspace())
    places = largest_slowly(values.tolist(), kept)
    assert torch.equal(out[places], values[places])
    others = torch.ones(values.numel(), dtype=torch.bool)
    others[places] = False
    assert not out[others].any()


def test_topk_with_the_longest_gaps_is_within_bounds() -> None:
    values = torch.zeros(100_000)
    values[-1] = 1.0
    body = _body(values, topk(1e-9))
    assert len(body) == codec_for(topk(1e-9)).bounds(100_000)[1] == 3 + 1 + 99_999 // 255


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("chunk", "keep"), [(64, 1), (64, 7), (128, 127), (256, 256), (4096, 64)])
def test_topk2_keeps_the_largest_of_every_chunk(case: str, chunk: int, keep: int) -> None:
    values = CASES[case]
    if not values.numel():
        return
    spec = topk2(chunk, keep)
    (*_, gaps) = codec_for(spec).encode(values, None, Workspace())
    written = iter(gaps.tolist())
    for part in torch.split(values, chunk):
        places, place = [], -1
        for _ in range(-(-keep * part.numel() // chunk)):
            while (byte := next(written)) == 255:
                place += 255
            places.append(place := place + byte + 1)
        assert places == largest_slowly(part.tolist(), len(places))
    assert next(written, None) is None


@pytest.mark.parametrize("case", ["normal", "all equal", "huge among small", "all magnitudes", "tiny"])
@pytest.mark.parametrize(("chunk", "keep"), [(64, 1), (64, 2), (64, 13), (256, 64)])
def test_no_two_magnitudes_are_nearer_to_what_a_chunk_keeps(case: str, chunk: int, keep: int) -> None:
    values = CASES[case]
    values = values[: values.numel() // chunk * chunk]
    spec = topk2(chunk, keep)
    out = torch.empty_like(values)
    codec_for(spec).decode(torch.frombuffer(bytearray(_body(values, spec)), dtype=torch.uint8), out, Workspace())
    for part, decoded in zip(torch.split(values.double(), chunk), torch.split(out.double(), chunk), strict=True):
        largest = largest_slowly(part.tolist(), keep)
        reached = float((part[largest] - decoded[largest]).square().sum())
        # Rounding to bfloat16 moves each magnitude by one part of 256 at most, half of that to nearest.
        rounding = float((part[largest] * 2.0**-8).square().sum()) + keep * (2.0**-126) ** 2
        least = two_means_slowly(part[largest].abs().tolist())
        assert reached <= (least**0.5 + rounding**0.5) ** 2 * (1 + 1e-6)


@pytest.mark.parametrize("few", [1, 2, 63])
def test_zeros_that_topk2_keeps_stay_zeros(few: int) -> None:
    values = torch.zeros(4096)
    values[100 : 100 + few] = normal(few).abs() + 1.0
    out = torch.empty_like(values)
    body = torch.frombuffer(bytearray(_body(values, topk2())), dtype=torch.uint8)
    codec_for(topk2()).decode(body, out, Workspace())
    assert torch.equal(out != 0, values != 0)
    assert out[100].item() == pytest.approx(float(values[100 : 100 + few].mean()), rel=2**-8)


def test_topk2_with_the_longest_gaps_is_within_bounds() -> None:
    values = torch.zeros(3 * 4096 + 1000)
    values[torch.tensor([4095, 8191, 12287, 13287])] = 1.0
    spec = topk2(4096, 1)
    assert len(_body(values, spec)) == codec_for(spec).bounds(values.numel())[1] == 16 + 2 + 4 + 3 * 16 + 3


@pytest.mark.parametrize("spec", [int8(), int4(), topk(0.1, 8, 1)], ids=name)
def test_stochastic_rounding_needs_a_generator(spec: CodecSpec) -> None:
    with pytest.raises(ValueError, match="Generator"):
        codec_for(spec).encode(normal(10), None, Workspace())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spec", [int8(), int4(), topk(0.01), topk(1.0, 32), topk2(64, 1)], ids=name)
def test_what_is_not_finite_has_no_place(spec: CodecSpec, bad: float) -> None:
    values = normal(1000)
    values[700] = bad
    with pytest.raises(ValueError, match="NaN and infinity"):
        codec_for(spec).encode(values, generator(), Workspace())


@pytest.mark.parametrize("spec", [FLOAT32, FLOAT16, BFLOAT16], ids=name)
def test_floating_codecs_pass_on_what_is_not_finite(spec: CodecSpec) -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 1e38])
    out = torch.empty_like(values)
    codec_for(spec).decode(torch.frombuffer(bytearray(_body(values, spec)), dtype=torch.uint8), out, Workspace())
    assert out[1].isnan()
    assert out[2:4].tolist() == [float("inf"), -float("inf")]
    assert out[[0, 4]].isfinite().all()
