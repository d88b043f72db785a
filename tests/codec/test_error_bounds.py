"""What each codec may lose, as its module promises, on the hard cases; and that stochastic rounding is fair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmos_stream.codec import SLICE, decode, encode
from llmos_stream.types import CodecId, CodecSpec
from tests.codec.oracle import largest_slowly
from tests.codec.samples import BFLOAT16, CASES, FLOAT16, FLOAT32, SPECS, generator, int4, int8, name, topk, topk2

SLACK = 1 + 1e-5
"""Room for the float32 arithmetic of quantising itself."""


def _round_trip(flat: Tensor, spec: CodecSpec, seed: int = 0) -> Tensor:
    return decode(list(encode(flat, spec, generator=generator(seed))), spec, flat.numel())


def _scales(flat: Tensor, levels: int, block: int) -> Tensor:
    """An upper bound of each element's scale, or of the whole error of a block whose scale is 0."""
    blocks = functional.pad(flat.abs().double(), (0, -flat.numel() % block)).view(-1, block)
    scales = blocks.amax(1) / levels
    bound = torch.where(scales < 2.0**-126, 2.0**-126 * levels, scales * (1 + 2.0**-7))
    return bound.repeat_interleave(block)[: flat.numel()]


def _bound(flat: Tensor, spec: CodecSpec) -> Tensor:
    size = flat.abs().double()
    match CodecId(spec.id):
        case CodecId.FLOAT32:
            return torch.zeros_like(size)
        case CodecId.FLOAT16:
            return torch.where(size <= 65504, (size * 2**-11).clamp(min=2.0**-25), size - 65504)
        case CodecId.BFLOAT16:
            return (size * 2**-8).clamp(min=2.0**-134)
        case CodecId.INT8 | CodecId.INT4 as id:
            scales = _scales(flat, 127 if id is CodecId.INT8 else 7, int(spec.params["block"]))
            return scales * SLACK * (1 if spec.params["stochastic"] or scales.amin() < 2.0**-118 else 0.5)
        case CodecId.TOPK:
            kept = math.ceil(spec.params["fraction"] * flat.numel())
            threshold = size.sort(descending=True).values[kept - 1]
            step = 0.0 if spec.params["bits"] == 32 else float(_scales(flat, 127, flat.numel()).amax()) * SLACK
            return torch.where(size > threshold, step, size.clamp(min=step))
        case CodecId.TOPK2:
            return torch.cat([_topk2_bound(part, spec) for part in torch.split(size, int(spec.params["chunk"]))])


def _topk2_bound(size: Tensor, spec: CodecSpec) -> Tensor:
    """Both magnitudes lie among those kept, but for rounding to bfloat16; a low one of 0 stands for zeros alone."""
    kept = size.sort(descending=True).values[: math.ceil(spec.params["keep"] * size.numel() / spec.params["chunk"])]
    largest, least = kept[0], kept[-1]
    between = largest - least if least else largest
    return torch.where(size >= least, between + largest * 2.0**-8 + 2.0**-126, size).clamp(min=size * (size <= least))


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_error_is_within_the_bound(spec: CodecSpec) -> None:
    for case, flat in CASES.items():
        back = _round_trip(flat, spec)
        assert back.isfinite().all(), case
        assert back.numel() == flat.numel()
        if flat.numel():
            excess = (back.double() - flat.double()).abs() - _bound(flat, spec)
            at = int(excess.argmax())
            assert excess[at] <= 0, f"{case}, element {at}: {flat[at]} -> {back[at]}"


def test_float32_keeps_every_bit() -> None:
    flat = torch.cat([CASES["negative zeros"], CASES["denormal"], torch.tensor([float("nan"), float("inf")])])
    assert torch.equal(_round_trip(flat, FLOAT32).view(torch.int32), flat.view(torch.int32))


def test_bfloat16_keeps_what_was_bfloat16() -> None:
    assert torch.equal(_round_trip(CASES["bfloat16 origin"], BFLOAT16), CASES["bfloat16 origin"])


def test_float16_saturates() -> None:
    assert _round_trip(torch.tensor([1e38, -1e38, 65519.0]), FLOAT16).tolist() == [65504.0, -65504.0, 65504.0]


@pytest.mark.parametrize("spec", [int8(), int4(), int8(32, 0), topk(), topk2(), topk2(64, 64)], ids=name)
def test_zeros_stay_zeros(spec: CodecSpec) -> None:
    flat = torch.cat([torch.zeros(999), torch.ones(1)])
    assert not _round_trip(flat, spec)[:-1].any()


@pytest.mark.parametrize(("spec", "levels"), [(int8(), 127), (int4(), 7), (topk(1.0, 8, 1), 127)])
@pytest.mark.parametrize("fraction", [0.03, 0.25, 0.5, 0.8])
def test_stochastic_rounding_is_unbiased(spec: CodecSpec, levels: int, fraction: float) -> None:
    # The scale is 1 in every block, so the elements lie `fraction` above a whole step.
    step = 3 + fraction
    flat = torch.full((1 << 18,), step)
    flat[1::2] = -step
    flat[::256] = levels
    back = _round_trip(flat, spec).double() - flat.double()
    for sign in (slice(2, None, 2), slice(1, None, 2)):
        errors = back[sign][flat[sign].abs() < levels]
        spread = math.sqrt(fraction * (1 - fraction))
        assert abs(errors.mean()) < 5 * spread / math.sqrt(errors.numel()) + 2.0**-17
        assert errors.std() == pytest.approx(spread, rel=0.02)


def test_nearest_rounding_is_not_random() -> None:
    flat = CASES["normal"]
    assert torch.equal(_round_trip(flat, int8(256, 0), seed=1), _round_trip(flat, int8(256, 0), seed=2))
    assert not torch.equal(_round_trip(flat, int8(), seed=1), _round_trip(flat, int8(), seed=2))


@pytest.mark.parametrize("chunk", [64, 256, 4096])
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=700), st.integers(1, 64))
def test_topk2_never_makes_an_update_longer_than_what_it_leaves_out(
    chunk: int, elements: list[float], keep: int
) -> None:
    """The contraction that error feedback needs: |x - C(x)| < |x|, and by as much as the kept elements weigh."""
    flat = torch.tensor(elements)
    spec = topk2(chunk, keep)
    lost = (flat.double() - _round_trip(flat, spec).double()).square()
    dropped = torch.zeros_like(lost)
    for part, rest in zip(torch.split(flat.double(), chunk), torch.split(dropped, chunk), strict=True):
        few = math.ceil(keep * part.numel() / chunk)
        rest[:] = part.square()
        rest[torch.tensor(largest_slowly(part.tolist(), few))] = 0.0
    length = flat.double().square().sum()
    assert lost.sum() <= length * (1 + 2.0**-8) + flat.numel() * 2.0**-250
    kept_error = lost.sum() - dropped.sum()
    assert kept_error <= (length - dropped.sum()) * (1 - 1 / keep + 2.0**-7) + flat.numel() * 2.0**-250


def test_topk2_costs_no_more_than_is_promised() -> None:
    """Bits an element at 64 of 4,096, all included, of normal noise: places and 2-bit values alone hold 0.147."""
    numel = 4 * SLICE
    size = sum(map(len, encode(torch.randn(numel, generator=generator()), topk2())))
    assert 8 * size / numel <= 0.15
