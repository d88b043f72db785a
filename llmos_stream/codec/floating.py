"""Floating-point codecs: every element at 32 or 16 bits, its bytes shuffled.

Body of n elements, no parameters: the n lowest bytes, then the n second bytes, up to the n highest, of

* float32: IEEE 754 binary32, lossless bit for bit, NaN payloads and signed zeros included;
* float16: IEEE 754 binary16, round to nearest even. Relative error at most 2^-11 from 6.2e-5 to 65504, absolute error
  at most 3e-8 below;
* bfloat16: the upper half of binary32, round to nearest even. Relative error at most 2^-8 for normal numbers.

A finite element beyond the range of the 16-bit format becomes its largest finite number, not an infinity: an update
stays usable, and error feedback keeps what was cut off. Infinities and NaN stay what they are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from llmos_stream.codec import byte_shuffle
from llmos_stream.codec.workspace import Workspace

_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True, slots=True)
class Floating:
    """Elements as `dtype`: float32, float16 or bfloat16."""

    dtype: torch.dtype

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        narrow = values if self.dtype == torch.float32 else self._narrow(values, workspace)
        streams = byte_shuffle.shuffle(narrow.view(_BITS[self.dtype]), workspace, "slice")
        if residual is not None:
            torch.sub(values, narrow, out=residual)
        return streams

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        if self.dtype == torch.float32:
            byte_shuffle.unshuffle(body, out.view(torch.int32), workspace)
        else:
            narrow = workspace.take("narrow", out.numel(), self.dtype)
            byte_shuffle.unshuffle(body, narrow.view(torch.int16), workspace)
            out.copy_(narrow)

    def bounds(self, count: int) -> tuple[int, int]:
        size = self.quantized_size(count)
        return size, size

    def quantized_size(self, count: int) -> int:
        """The quantized form is the elements themselves, as `dtype`."""
        return count * self.dtype.itemsize

    def unpacks_in_place(self) -> bool:
        return False

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        byte_shuffle.unshuffle(body, quantized.view(_BITS[self.dtype]), workspace)
        return math.inf

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        values = quantized.view(self.dtype)[begin:end]
        if self.dtype == torch.float32:
            return values
        return workspace.take("values", end - begin, torch.float32).copy_(values)

    def _narrow(self, values: Tensor, workspace: Workspace) -> Tensor:
        narrow = workspace.take("narrow", values.numel(), self.dtype)
        limit = torch.finfo(self.dtype).max
        low, high = values.aminmax()
        if -limit <= low and high <= limit:
            return narrow.copy_(values)
        return narrow.copy_(torch.where(values.isfinite(), values.clamp(-limit, limit), values))
