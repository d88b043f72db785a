"""Block codecs: int8 and int4 steps under one scale for each block of elements.

Body of n elements in blocks of B (the last may be shorter), with b = ceil(n / B):

* b low bytes, then b high bytes of the scales (bfloat16);
* int8: n bytes, the steps in two's complement;
* int4: ceil(n / 2) bytes; byte j holds step 2j + 8 in its low and step 2j + 1 + 8 in its high half, and the high half
  of the last byte is 8 where n is odd.

An element is step x scale, with steps from -L to L (L = 127 for int8, 7 for int4). A block's scale is its largest
magnitude / L, rounded up to bfloat16: the exponent range of float32, so that 1e38 survives, at half the bytes.
A scale below 2^-126 (the least normal float32) is written as 0 and its block decodes to zeros: reciprocals of
denormals overflow, and some builds flush them.

Rounding is to the nearest step (half to even), or stochastic: up with the probability of the fraction, so that the
expectation is the element itself, to within 2^-17 of a step (QSGD, Alistarh et al. 2017). The error of an element is
below one scale (half of one with nearest rounding), or below 2^-126 L where the scale is 0.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from llmos_stream.codec import byte_shuffle
from llmos_stream.codec.base import STEP
from llmos_stream.codec.workspace import Workspace

_MAX = torch.finfo(torch.float32).max
_LEAST_SCALE_BITS = 0x0080
_NOISE_STEP = 2.0**-16


@dataclass(frozen=True, slots=True)
class Blocks:
    """Steps of `bits` (8 or 4) bits, `block` elements to a scale; `stochastic` or nearest rounding."""

    bits: int
    block: int
    stochastic: bool

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        levels = (1 << self.bits - 1) - 1
        scales, steps = quantize_blocks(
            values, levels, self.block, rounding_noise(self.stochastic, generator), workspace
        )
        if residual is not None:
            subtract_decoded(values, scales, steps, self.block, residual, workspace)
        return [
            *byte_shuffle.shuffle(scales, workspace),
            steps.view(torch.uint8) if self.bits == 8 else _pack_nibbles(steps, workspace),
        ]

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        count, size = out.numel(), self._scales_size(out.numel())
        if self.bits == 8:
            steps = body[size:].view(torch.int8)
        else:
            steps = _unpack_nibbles(body[size:], workspace.take("steps", count, torch.int8), workspace)
        dequantize_blocks(body[:size], steps, self.block, out, workspace)

    def bounds(self, count: int) -> tuple[int, int]:
        size = self._scales_size(count) + -(-count * self.bits // 8)
        return size, size

    def quantized_size(self, count: int) -> int:
        """The quantized form is the scales (bfloat16), then the steps with a byte each."""
        return self._scales_size(count) + count

    def unpacks_in_place(self) -> bool:
        return self.bits == 8

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        size = self._scales_size(count)
        bits = workspace.take("scales", size // 2, torch.int16)
        byte_shuffle.unshuffle(body[:size], bits, workspace)
        if self.bits == 4:
            _unpack_nibbles(body[size:], quantized[size:].view(torch.int8), workspace)
        elif quantized.data_ptr() != body.data_ptr():
            quantized[size:].copy_(body[size:])
        quantized[:size].view(torch.int16).copy_(bits)
        # The step below the least that is ever written can stand in the bytes all the same.
        return float(bits.view(torch.bfloat16).abs().max()) * (1 << self.bits - 1)

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        size = self._scales_size(count)
        scales = quantized[:size].view(torch.bfloat16)[begin // self.block : -(-end // self.block)].float()
        values = workspace.take("values", end - begin, torch.float32)
        _multiply(quantized[size + begin : size + end].view(torch.int8), scales, self.block, values)
        return values

    def _scales_size(self, count: int) -> int:
        return 2 * -(-count // self.block)


def rounding_noise(stochastic: bool, generator: Generator | None) -> Generator | None:
    """The generator where rounding is stochastic, else None.

    Raises:
        ValueError: Rounding is stochastic and there is no generator.
    """
    if stochastic and generator is None:
        raise ValueError("stochastic rounding needs a torch.Generator")
    return generator if stochastic else None


def quantize_blocks(
    values: Tensor, levels: int, block: int, noise: Generator | None, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """Scales (int16, the bits of bfloat16, one a block) and steps (int8, one an element) of 1-D float32 `values`.

    Rounds stochastically with `noise`, to nearest without.

    Raises:
        ValueError: `values` hold NaN or infinity.
    """
    bits = torch.empty(-(-values.numel() // block), dtype=torch.int16, device="cpu")
    steps = workspace.take("steps", values.numel(), torch.int8)
    for begin in range(0, values.numel(), STEP):
        some = values[begin : begin + STEP]
        scales = bits[begin // block : -(-(begin + some.numel()) // block)]
        _quantize(some, levels, block, noise, workspace, scales, steps[begin : begin + STEP])
    return bits, steps


def _quantize(
    values: Tensor, levels: int, block: int, noise: Generator | None, workspace: Workspace, bits: Tensor, steps: Tensor
) -> None:
    """Write scales into `bits` and steps into `steps`."""
    count = values.numel()
    blocks = (functional.pad(values, (0, -count % block)) if count % block else values).view(-1, block)
    largest = torch.maximum(blocks.amax(1), -blocks.amin(1))
    if not largest.isfinite().all():
        raise ValueError("NaN and infinity cannot be quantised")
    bits.copy_(_scale_bits(largest, levels))
    inverse = bits.view(torch.bfloat16).float().reciprocal_().masked_fill_(bits == 0, 0.0)
    exact = torch.mul(
        blocks, inverse[:, None], out=workspace.take("exact steps", blocks.numel(), torch.float32).view(-1, block)
    )
    if noise is None:
        exact.round_()
    else:
        exact.add_(_sixteen_bits(noise, blocks.numel(), workspace).view(-1, block), alpha=_NOISE_STEP)
        exact.add_(0.5 + _NOISE_STEP / 2).floor_()
    steps.copy_(exact.clamp_(-levels, levels).view(-1)[:count])


def dequantize_blocks(scale_bytes: Tensor, steps: Tensor, block: int, out: Tensor, workspace: Workspace) -> None:
    """Write steps x scales into `out` (1-D float32); `scale_bytes` are the low, then the high bytes."""
    bits = torch.empty(scale_bytes.numel() // 2, dtype=torch.int16, device="cpu")
    byte_shuffle.unshuffle(scale_bytes, bits, workspace)
    scales = bits.view(torch.bfloat16).float()
    for begin in range(0, out.numel(), STEP):
        end = begin + STEP
        _multiply(steps[begin:end], scales[begin // block :], block, out[begin:end])


def subtract_decoded(
    values: Tensor, bits: Tensor, steps: Tensor, block: int, residual: Tensor, workspace: Workspace
) -> None:
    """Write `values` less what their scales and steps decode to into `residual`, which may be `values`."""
    scales = bits.view(torch.bfloat16).float()
    for begin in range(0, values.numel(), STEP):
        part = values[begin : begin + STEP]
        decoded = workspace.take("decoded", part.numel(), torch.float32)
        _multiply(steps[begin : begin + STEP], scales[begin // block :], block, decoded)
        torch.sub(part, decoded, out=residual[begin : begin + STEP])


def _multiply(steps: Tensor, scales: Tensor, block: int, out: Tensor) -> None:
    out.copy_(steps)
    whole = out.numel() // block
    out[: whole * block].view(-1, block).mul_(scales[:whole, None])
    if whole * block < out.numel():
        out[whole * block :].mul_(scales[-1])


def _scale_bits(largest: Tensor, levels: int) -> Tensor:
    # Adding all ones below the cut rounds the magnitude up, so that the largest element stays within the last step.
    bits = ((largest / levels).view(torch.int32) + 0xFFFF) >> 16
    # Rounded up, the scale of a block near the largest float would decode to infinity.
    ceiling = int(torch.tensor(_MAX / levels, dtype=torch.float32, device="cpu").view(torch.int32)) >> 16
    return bits.clamp_(max=ceiling).masked_fill_(bits < _LEAST_SCALE_BITS, 0).to(torch.int16)


def _sixteen_bits(noise: Generator, count: int, workspace: Workspace) -> Tensor:
    # One draw of 64 bits makes four of 16: drawing is what stochastic rounding spends its time on.
    draws = workspace.take("draws", -(-count // 4), torch.int64).random_(-(2**63), None, generator=noise)
    return workspace.take("noise", count, torch.float32).copy_(draws.view(torch.int16)[:count])


def _pack_nibbles(steps: Tensor, workspace: Workspace) -> Tensor:
    count = steps.numel()
    offset = workspace.take("offset", count + count % 2, torch.int8)
    offset[-1] = 0
    offset[:count] = steps
    pairs = offset.add_(8).view(torch.int16)
    shifted = torch.bitwise_right_shift(pairs, 4, out=workspace.take("shifted pairs", pairs.numel(), torch.int16))
    return workspace.take("packed", pairs.numel(), torch.uint8).copy_(shifted.bitwise_or_(pairs))


def _unpack_nibbles(packed: Tensor, out: Tensor, workspace: Workspace) -> Tensor:
    for begin in range(0, out.numel(), STEP):
        part, halves = out[begin : begin + STEP], packed[begin // 2 : (begin + STEP) // 2]
        pairs = workspace.take("pairs", halves.numel(), torch.int16).copy_(halves)
        shifted = torch.bitwise_left_shift(pairs, 4, out=workspace.take("shifted pairs", pairs.numel(), torch.int16))
        torch.sub(pairs.bitwise_or_(shifted).bitwise_and_(0x0F0F).view(torch.int8)[: part.numel()], 8, out=part)
    return out
