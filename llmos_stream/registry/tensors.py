"""A model's weights as a safetensors file, piece by piece, without a second copy of the model.

    8 bytes    length of the header, little endian
    header     JSON: `__metadata__` and each tensor's dtype, shape and [begin, end) in what follows; spaces to 8 bytes
    data       each tensor in row-major order, little endian, the widest dtypes first, so that all are aligned

Layout and metadata alone determine the header, so that a reader compares it and interprets nothing from outside.
A tied tensor is archived once, and exported under each of its names: the format lets no two share their bytes.
(https://huggingface.co/docs/safetensors, "Format")
"""

import math
from collections.abc import Iterator, Mapping

import orjson
import torch
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.errors import ConfigError

_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_DTYPES = {name: getattr(torch, name) for name in _NAMES}
_METADATA = "__metadata__"
_ALIGNMENT = 8


def file_header(layout: Layout, metadata: Mapping[str, str], *, whole: bool = False) -> bytes:
    """Return the file up to its data; `whole`: with the further names of tied tensors.

    Raises:
        ConfigError: A tensor has the name that safetensors reserves.
    """
    entries: dict[str, object] = {_METADATA: dict(metadata)}
    at = 0
    for name, index in _order(layout, whole):
        _, shape, dtype, _ = layout.tensors[index]
        if name == _METADATA:
            raise ConfigError(f"task.share: a tensor named {_METADATA} cannot be written as safetensors; rename it")
        end = at + math.prod(shape) * _DTYPES[dtype].itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = orjson.dumps(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def data_size(layout: Layout) -> int:
    """Return the number of bytes after the header."""
    return sum(spec.numel * _DTYPES[spec.dtype].itemsize for spec in layout.tensors)


def file_pieces(
    weights: Tensor, layout: Layout, metadata: Mapping[str, str], *, whole: bool = False
) -> Iterator[bytes | memoryview]:
    """Yield the whole file, as `file_header` has it. A piece is valid until `weights` (flat, float32) change."""
    yield file_header(layout, metadata, whole=whole)
    for piece, dtype in _slices(weights, layout, whole):
        yield _bytes_of(piece.to(dtype))


def read_buffers(weights: Tensor, layout: Layout) -> Iterator[memoryview]:
    """Yield the buffers for a file's data, in its order. Fill each before the next; they make up `weights`."""
    for piece, dtype in _slices(weights, layout, whole=False):
        buffer = piece if dtype == torch.float32 else torch.empty(piece.numel(), dtype=dtype, device="cpu")
        yield _bytes_of(buffer)
        if buffer is not piece:
            piece.copy_(buffer)


def is_exact(layout: Layout) -> bool:
    """Whether the file holds the float32 weights exactly, with no tensor rounded to a narrower dtype."""
    return all(_DTYPES[spec.dtype].itemsize >= 4 for spec in layout.tensors)


def _order(layout: Layout, whole: bool) -> list[tuple[str, int]]:
    """Return the names in the file, and which tensor of the layout each is."""
    tensors = layout.tensors
    places = {spec.name: index for index, spec in enumerate(tensors)}
    names = {**places, **({further: places[name] for further, name in layout.tied.items()} if whole else {})}
    return sorted(names.items(), key=lambda item: -_DTYPES[tensors[item[1]].dtype].itemsize)


def _slices(weights: Tensor, layout: Layout, whole: bool) -> Iterator[tuple[Tensor, torch.dtype]]:
    pieces = torch.split(weights, [spec.numel for spec in layout.tensors])
    for _, index in _order(layout, whole):
        yield pieces[index], _DTYPES[layout.tensors[index].dtype]


def _bytes_of(piece: Tensor) -> memoryview:
    return piece.view(torch.uint8).numpy().data if piece.numel() else memoryview(b"")
