"""Updates that are kept until their version is made, and the walk through all of them in step.

An update is kept in quantized form: 1 byte a parameter for int8 and int4, so K of them take K bytes a
parameter. The walk makes float32 of one stretch at a time, whatever the lengths in which each delta yields its values.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from llmos_stream.core.delta import Delta
from llmos_stream.core.device import Upload
from llmos_stream.core.flat import ROW, row_norms
from llmos_stream.types import Contribution

_CELLS = 1 << 21
"""Numbers in a stretch of all updates: 8 MiB."""


class Held:
    """The updates of one version, in the order in which they were folded."""

    def __init__(self, manifest: Sequence[Contribution], deltas: Sequence[Delta]) -> None:
        self.manifest = list(manifest)
        self.deltas = list(deltas)

    def __len__(self) -> int:
        return len(self.manifest)

    def without_weight_0(self) -> "Held":
        """Those that take part."""
        there = [place for place, item in enumerate(self.manifest) if item.weight]
        return Held([self.manifest[place] for place in there], [self.deltas[place] for place in there])

    def norms(self) -> list[float]:
        """The L2 norm of each delta as it was sent."""
        return [delta.norm() for delta in self.deltas]

    def distances(self) -> list[list[float]]:
        """The squared L2 distance of each delta, clipped, to each: the same for any number of threads."""
        count = len(self)
        found = [[0.0] * count for _ in range(count)]
        for rows in self.rows([item.clip for item in self.manifest]):
            for one, other in combinations(range(count), 2):
                found[one][other] += math.fsum(norm * norm for norm in row_norms(rows[one] - rows[other]))
        for one, other in combinations(range(count), 2):
            found[other][one] = found[one][other]
        return found

    def rows(self, factors: Sequence[float], device: torch.device | None = None) -> Iterator[Tensor]:
        """[updates, elements] on `device` (else the CPU): row i is `factors[i]` times delta i, a stretch at a time.

        Each is valid until the next is drawn, and may be overwritten where there are several updates. Every stretch
        but the last is a multiple of ROW long. Raises ValueError for deltas of different lengths.
        """
        count, numel = len(self), self.deltas[0].numel
        if count == 1:
            yield from self._one(factors[0], device)
            return
        length = max(min(max(_CELLS // count // ROW, 1) * ROW, numel), 1)
        walks = [_Walk(delta, factor) for delta, factor in zip(self.deltas, factors, strict=True)]
        room = torch.empty((count, length), dtype=torch.float32, device=device)
        for begin in range(0, numel, length):
            rows = room[:, : min(length, numel - begin)]
            for walk, row in zip(walks, rows, strict=True):
                walk.fill(row)
            yield rows
        for walk in walks:
            walk.finish()

    def _one(self, factor: float, device: torch.device | None) -> Iterator[Tensor]:
        (delta,), seen = self.deltas, 0
        for part in Upload(device or torch.device("cpu")).blocks(delta.slices(factor)):
            seen += part.numel()
            yield part.view(1, -1)
        if seen != delta.numel:
            raise ValueError(f"a delta of {seen} elements where {delta.numel} are needed")


class _Walk:
    """One delta's values, in whatever lengths they are asked for."""

    def __init__(self, delta: Delta, factor: float) -> None:
        self._numel = delta.numel
        self._slices = delta.slices(factor)
        self._rest = torch.empty(0, dtype=torch.float32, device="cpu")
        self._seen = 0

    def fill(self, row: Tensor) -> None:
        at = 0
        while at < row.numel():
            if not self._rest.numel():
                self._rest = self._next()
            part = self._rest[: row.numel() - at]
            row[at : at + part.numel()].copy_(part)
            self._rest = self._rest[part.numel() :]
            at += part.numel()

    def finish(self) -> None:
        """Raises ValueError where values are left: the delta is longer than it says."""
        if self._rest.numel() or next(self._slices, None) is not None:
            raise ValueError(f"a delta of more than the {self._numel} elements that it says")

    def _next(self) -> Tensor:
        part = next(self._slices, None)
        if part is None:
            raise ValueError(f"a delta of {self._seen} elements where {self._numel} are needed")
        self._seen += part.numel()
        return part
