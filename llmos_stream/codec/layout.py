"""The layout: which tensors travel, in which order, and how they become one flat float32 vector and back.

Everything between training and the log speaks of the flat vector alone: one contiguous 1-D float32 CPU tensor with
the shared tensors end to end in layout order, each in row-major order: first the parameters, then the buffers (see
`types.TensorKind`). Two ends agree on a layout when their digests are equal. Of a release that knew no buffers, all
tensors are parameters. A tied tensor travels once; its further names are not in the digest.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Fragment, TensorKind, TensorSpec

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""The dtypes that are shared, by name. Integer buffers stay where they are: they must not be averaged."""

MAX_NUMEL = 1 << 38
MAX_TENSORS = 1 << 20
MAX_DIMS = 64
MAX_NAME = 1024


@dataclass(frozen=True)
class Layout:
    """Ordered specs of the shared tensors, parameters first. Raises ValueError for specs that make no sense."""

    tensors: tuple[TensorSpec, ...]
    tied: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The further names of tied tensors in the model's state dict, and under which name each is in `tensors`."""

    def __post_init__(self) -> None:
        for problem in chain(_problems(self.tensors), _tie_problems(self)):
            raise ValueError(problem)

    @classmethod
    def of(
        cls, named: Mapping[str, Tensor], buffers: Collection[str] = (), tied: Mapping[str, str] | None = None
    ) -> Self:
        """The layout of `named`, in its order, but those that `buffers` names come last.

        Raises:
            ValueError: A tensor is not floating; the error names it.
        """
        kinds = {name: TensorKind.BUFFER if name in buffers else TensorKind.PARAMETER for name in named}
        specs = [TensorSpec(name, tuple(named[name].shape), _name_of(named[name]), kinds[name]) for name in named]
        return cls(tuple(sorted(specs, key=lambda spec: spec.kind is TensorKind.BUFFER)), tied or {})

    @classmethod
    def from_specs(cls, specs: Iterable[TensorSpec], tied: Mapping[str, str] | None = None) -> Self:
        """A layout that arrived from outside; a spec may be any sequence as `TensorSpec.row`.

        Raises:
            Rejected: WRONG_LAYOUT for a spec of another form, a duplicate name, an unknown dtype or kind, a negative
                dimension, a parameter behind a buffer, a further name of no tensor, or sizes past this module's limits.
        """
        try:
            return cls(
                tuple(
                    TensorSpec(name, tuple(shape), dtype, *map(TensorKind, kind)) for name, shape, dtype, *kind in specs
                ),
                {} if tied is None else dict(tied),
            )
        except (TypeError, ValueError) as error:
            raise Rejected(Reason.WRONG_LAYOUT, str(error)) from None

    @cached_property
    def numel(self) -> int:
        """Elements of the flat vector."""
        return sum(spec.numel for spec in self.tensors)

    @cached_property
    def buffers(self) -> tuple[TensorSpec, ...]:
        """The specs of the buffers."""
        return tuple(spec for spec in self.tensors if spec.kind is TensorKind.BUFFER)

    @cached_property
    def parameters(self) -> int:
        """Elements of the flat vector's first part, the parameters."""
        return self.numel - sum(spec.numel for spec in self.buffers)

    @cached_property
    def buffer_elements(self) -> int:
        """Elements of its second part, the buffers."""
        return self.numel - self.parameters

    def parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the parameters and of the buffers in a flat vector."""
        check_flat(flat, self.numel)
        return flat[: self.parameters], flat[self.parameters :]

    def moving(self, flat: Tensor, elements: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Views of those parameters and buffers that lie in a range of a flat vector (None: in all of it).

        Raises:
            ValueError: The range ends beyond the model, or has no parameters, or some of the buffers.
        """
        check_flat(flat, self.numel)
        begin, end = elements or (0, self.numel)
        if elements is not None and not (begin < self.parameters and (end <= self.parameters or end == self.numel)):
            raise ValueError(f"elements {begin} to {end} are no fragment of a model of {self.numel}")
        return flat[begin : min(end, self.parameters)], flat[self.parameters : end]

    def fragments(self, count: int) -> tuple[Fragment, ...]:
        """The flat vector cut into so many stretches of whole tensors, of nearly as many parameters each.

        Each is a layout of its own. Buffers are the end of the last one, as they are of the flat vector.

        Raises:
            ValueError: There are fewer tensors of parameters than that.
        """
        if count == 1:
            return (Fragment(0, self.numel, self.digest, self.buffers),)
        begins = list(accumulate((spec.numel for spec in self.tensors), initial=0))
        borders = sorted({at for at in begins if 0 < at < self.parameters})
        if count - 1 > len(borders):
            raise ValueError(f"{count} fragments of a model that has {len(borders) + 1} tensors of parameters")
        ends, taken = [0], 0
        for done in range(1, count):
            # As many borders are left over as the fragments behind need.
            free = range(taken, len(borders) - (count - 1 - done))
            taken = min(free, key=lambda place: abs(borders[place] * count - done * self.parameters)) + 1
            ends.append(borders[taken - 1])
        ends.append(self.numel)
        return tuple(self._fragment(begins, begin, end) for begin, end in pairwise(ends))

    def digest_of(self, elements: tuple[int, int] | None) -> bytes | None:
        """The digest of a fragment as a layout of its own (None: of all); None where it is no stretch of tensors."""
        if elements is None:
            return self.digest
        begins = list(accumulate((spec.numel for spec in self.tensors), initial=0))
        return self._fragment(begins, *elements).digest if set(elements) <= set(begins) else None

    def _fragment(self, begins: Sequence[int], begin: int, end: int) -> Fragment:
        # A tensor without elements belongs to the one that begins where it lies.
        first, last = bisect_left(begins, begin), len(self.tensors) if end == self.numel else bisect_left(begins, end)
        layout = Layout(self.tensors[first:last])
        return Fragment(begin, end, layout.digest, layout.buffers)

    def has_tensors_of(self, other: "Layout") -> bool:
        """Whether both have the same tensors, in whatever order and of whatever kinds."""
        here, there = ({spec[:3] for spec in layout.tensors} for layout in (self, other))
        return here == there

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over the rows of the tensors (see `TensorSpec.row`), as ASCII JSON without spaces."""
        rows = [spec.row for spec in self.tensors]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode()).digest()

    def flatten(self, named: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Copy `named` into the flat vector; `out`, where given, is filled and returned.

        The tensors may be of any floating dtype and on any device (float64 is rounded).

        Raises:
            ValueError: A tensor is missing, not in the layout, or of another shape or kind.
        """
        flat = (
            torch.empty(self.numel, dtype=torch.float32, device="cpu") if out is None else check_flat(out, self.numel)
        )
        names = {spec.name for spec in self.tensors}
        if unknown := next((name for name in named if name not in names), None):
            raise ValueError(f"tensor {unknown!r} is not in the layout")
        at = 0
        for name, shape, _, _ in self.tensors:
            if (tensor := named.get(name)) is None:
                raise ValueError(f"tensor {name!r} is missing")
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                raise ValueError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the layout says {shape}")
            flat[at : at + tensor.numel()].view(shape).copy_(tensor.detach())
            at += tensor.numel()
        return flat

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut the flat vector into named tensors: views of it where the dtype is float32, conversions otherwise."""
        views = self.views(flat)
        return {spec.name: views[spec.name].to(DTYPES[spec.dtype]) for spec in self.tensors}

    def parameter_views(self, flat: Tensor) -> dict[str, Tensor]:
        """The named parameters as views of the flat vector's first part, all float32."""
        check_flat(flat, self.parameters)
        specs = [spec for spec in self.tensors if spec.kind is TensorKind.PARAMETER]
        pieces = torch.split(flat, [spec.numel for spec in specs])
        return {spec.name: piece.view(spec.shape) for spec, piece in zip(specs, pieces, strict=True)}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The named tensors as views of the flat vector, all float32."""
        check_flat(flat, self.numel)
        pieces = torch.split(flat, [spec.numel for spec in self.tensors])
        return {spec.name: piece.view(spec.shape) for spec, piece in zip(self.tensors, pieces, strict=True)}


def check_flat(flat: Tensor, numel: int | None = None) -> Tensor:
    """Return `flat` if it is a flat vector (of `numel` elements).

    Raises:
        ValueError: It is none.
    """
    if flat.dtype != torch.float32 or flat.dim() != 1 or flat.device.type != "cpu" or not flat.is_contiguous():
        raise ValueError(f"a flat vector is 1-D contiguous float32 on the CPU, not {flat.dtype} {tuple(flat.shape)}")
    if numel is not None and flat.numel() != numel:
        raise ValueError(f"the flat vector has {flat.numel()} elements, not {numel}")
    return flat


def is_finite(flat: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # The extremes are NaN or infinite if any element is; isfinite of all would allocate a mask.
    return flat.numel() == 0 or bool(torch.stack(flat.aminmax()).isfinite().all())


def _name_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _problems(tensors: Iterable[tuple[Any, Any, Any, TensorKind]]) -> Iterator[str]:
    names: set[str] = set()
    total = 0
    before = TensorKind.PARAMETER
    for name, shape, dtype, kind in tensors:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            yield f"{_short(name)} is not a tensor name of 1 to {MAX_NAME} characters"
        elif name in names:
            yield f"tensor {name!r} is there twice"
        elif not isinstance(dtype, str) or dtype not in DTYPES:
            yield f"tensor {name!r}: dtype {_short(dtype)} is not one of {', '.join(DTYPES)}"
        elif len(shape) > MAX_DIMS or not all(type(size) is int and 0 <= size <= MAX_NUMEL for size in shape):
            yield f"tensor {name!r}: {_short(shape)} is not a shape"
        elif before is TensorKind.BUFFER and kind is TensorKind.PARAMETER:
            yield f"tensor {name!r} is a parameter behind a buffer"
        else:
            # A zero beside an absurd dimension would hide it: torch multiplies the others too.
            total += math.prod(max(size, 1) for size in shape)
            if total > MAX_NUMEL:
                yield f"tensor {name!r}: more than {MAX_NUMEL} elements in all"
        before = kind
        names.add(name)
        if len(names) > MAX_TENSORS:
            yield f"more than {MAX_TENSORS} tensors"


def _tie_problems(layout: Layout) -> Iterator[str]:
    names = {spec.name for spec in layout.tensors} if layout.tied else set()
    for further, name in layout.tied.items():
        if not 0 < len(further) <= MAX_NAME or further in names or name not in names:
            yield f"{_short(further)} is not a further name of a tensor"


def _short(value: object) -> str:
    return f"{value!r:.60}"
