"""The byte shuffle of HDF5 and Blosc: all lowest bytes of an array of numbers, then all second bytes, and so on.

Sign and exponent of a delta's elements are alike, while low mantissa bits are noise. Apart from each other, the first
compress well and the second cost zstd next to no time.
"""

import torch
from torch import Tensor

from llmos_stream.codec.base import STEP
from llmos_stream.codec.workspace import Workspace


def shuffle(bits: Tensor, workspace: Workspace, name: str = "streams") -> list[Tensor]:
    """The byte streams (uint8, lowest byte first) of a 1-D int16 or int32 tensor, in the workspace's buffer `name`."""
    count, width = bits.numel(), bits.element_size()
    rows = workspace.take(name, count * width, torch.uint8).view(width, count)
    for begin in range(0, count, STEP):
        part = bits[begin : begin + STEP]
        shifted = workspace.take("shifted", part.numel(), bits.dtype)
        for index, row in enumerate(rows):
            source = torch.bitwise_right_shift(part, 8 * index, out=shifted) if index else part
            row[begin : begin + STEP] = source
    return list(rows)


def unshuffle(body: Tensor, out: Tensor, workspace: Workspace) -> None:
    """Undo `shuffle`: fill `out` (1-D int16 or int32) from `body`, its byte streams end to end."""
    *lower, highest = body.view(out.element_size(), -1)
    for begin in range(0, out.numel(), STEP):
        part = out[begin : begin + STEP].copy_(highest[begin : begin + STEP])
        wide = workspace.take("wide", part.numel(), out.dtype)
        for stream in reversed(lower):
            part.bitwise_left_shift_(8).bitwise_or_(wide.copy_(stream[begin : begin + STEP]))
