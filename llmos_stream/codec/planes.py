"""Byte planes: all lowest bytes of an array of numbers, then all second bytes, and so on.

Sign and exponent of a delta's elements are alike while low mantissa bits are noise. Apart, the first compress well
and the second cost zstd next to no time. (The shuffle filter of HDF5 and Blosc.)
"""

import torch
from torch import Tensor

from llmos_stream.codec.scratch import Scratch


def split(bits: Tensor, scratch: Scratch) -> list[Tensor]:
    """The byte planes (uint8, lowest byte first) of a 1-D int16 or int32 tensor."""
    count, width = bits.numel(), bits.element_size()
    rows = scratch.take("planes", count * width, torch.uint8).view(width, count)
    shifted = scratch.take("shifted", count, bits.dtype)
    for index, row in enumerate(rows):
        row.copy_(torch.bitwise_right_shift(bits, 8 * index, out=shifted) if index else bits)
    return list(rows)


def join(body: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Undo `split`: fill `out` (1-D int16 or int32) from `body`, its planes end to end."""
    wide = scratch.take("wide", out.numel(), out.dtype)
    *lower, highest = body.view(out.element_size(), -1)
    out.copy_(highest)
    for plane in reversed(lower):
        out.bitwise_left_shift_(8).bitwise_or_(wide.copy_(plane))
