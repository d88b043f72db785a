"""Byte planes: all lowest bytes of an array of numbers, then all second bytes, and so on.

Sign and exponent of a delta's elements are alike while low mantissa bits are noise. Apart, the first compress well
and the second cost zstd next to no time. (The shuffle filter of HDF5 and Blosc.)
"""

import torch
from torch import Tensor

from llmos_stream.codec.base import STEP
from llmos_stream.codec.scratch import Scratch


def split(bits: Tensor, scratch: Scratch, name: str = "planes") -> list[Tensor]:
    """The byte planes (uint8, lowest byte first) of a 1-D int16 or int32 tensor, in the scratch's buffer `name`."""
    count, width = bits.numel(), bits.element_size()
    rows = scratch.take(name, count * width, torch.uint8).view(width, count)
    for begin in range(0, count, STEP):
        part = bits[begin : begin + STEP]
        shifted = scratch.take("shifted", part.numel(), bits.dtype)
        for index, row in enumerate(rows):
            source = torch.bitwise_right_shift(part, 8 * index, out=shifted) if index else part
            row[begin : begin + STEP] = source
    return list(rows)


def join(body: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Undo `split`: fill `out` (1-D int16 or int32) from `body`, its planes end to end."""
    *lower, highest = body.view(out.element_size(), -1)
    for begin in range(0, out.numel(), STEP):
        part = out[begin : begin + STEP].copy_(highest[begin : begin + STEP])
        wide = scratch.take("wide", part.numel(), out.dtype)
        for plane in reversed(lower):
            part.bitwise_left_shift_(8).bitwise_or_(wide.copy_(plane[begin : begin + STEP]))
