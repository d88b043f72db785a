"""What the pipe is measured with: model size, codec, clients and updates, and the table of the default run."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmos_stream.config import Settings, load
from tests.bench.common import fresh_name

CODECS = ("float32", "float16", "bfloat16", "int8", "int4", "topk", "topk2")
ONE_WAY, ROUND_TRIP = "one way", "round trip"
PHASES = (ONE_WAY, ROUND_TRIP)
IDLE_NUMEL = 1000
"""Parameters of the model beside which memory is measured."""
_NEVER_STALE = 10**9
_LONG_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec as it is named on the command line: `int8`, or `topk:0.01` with its fraction."""

    name: str
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Codec":
        name, colon, fraction = text.partition(":")
        if name not in CODECS or (colon and name != "topk"):
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(CODECS)} (top-k also as topk:0.01)")
        if not colon:
            return cls(name)
        try:
            share = float(fraction)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise argparse.ArgumentTypeError(f"{text!r}: the fraction must lie above 0 and not above 1")
        return cls(name, share)

    def settings(self) -> dict[str, object]:
        """Its part of the settings."""
        return {"name": self.name} | ({} if self.fraction is None else {"fraction": self.fraction})

    def __str__(self) -> str:
        return self.name if self.fraction is None else f"top {100 * self.fraction:g} %"


@dataclass(frozen=True, slots=True)
class Cell:
    """One federation to measure. `updates` are those of a phase, of all clients together."""

    numel: int
    codec: Codec
    clients: int
    updates: int
    phases: tuple[str, ...] = PHASES

    @property
    def each(self) -> int:
        """Updates of one client in a phase."""
        return -(-self.updates // self.clients)

    @property
    def model_bytes(self) -> int:
        return 4 * self.numel

    def __str__(self) -> str:
        return f"{millions(self.numel)} {self.codec}, {self.clients} client{'s' * (self.clients > 1)}"


def number(text: str) -> int:
    """`10_000_000`, `1e7`."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 1 <= value < 1e18 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(value)


def millions(numel: int) -> str:
    return f"{numel / 1e6:g} M" if numel >= 100_000 else f"{numel}"


def usual_updates(numel: int, clients: int) -> int:
    """Enough to measure, and few enough for a machine with two cores; each client publishes at least one."""
    if numel <= 2_000_000:
        return 96
    if numel <= 20_000_000:
        return 48 if clients > 1 else 24
    return max(clients, 4)


def cells(
    numels: Sequence[int], codecs: Sequence[Codec], clients: Sequence[int], updates: Sequence[int] | None
) -> list[Cell]:
    """Every combination, those with the same clients and size beside each other."""
    return [
        Cell(numel, codec, count, many)
        for numel, count, codec in itertools.product(numels, clients, codecs)
        for many in updates or [usual_updates(numel, count)]
    ]


def usual_cells() -> list[Cell]:
    """The default run: what the pipe promises, from 1 to 100 M parameters and from 1 to 16 clients."""
    plain, sparse = [Codec("float32"), Codec("int8")], [Codec("int4"), Codec("topk", 0.01)]
    small = cells([1_000_000, 10_000_000], plain, [1, 4, 16], None) + cells([10_000_000], sparse, [4], None)
    # Whether memory grows with the number of updates.
    long = [Cell(10_000_000, Codec("int8"), 4, updates, (ONE_WAY,)) for updates in (100, 1000)]
    return small + long + cells([100_000_000], plain, [1, 4, 16], None)


def cell_settings(cell: Cell, servers: str, threads: int) -> Settings:
    """Of a federation of its own, where a version waits for an update of each client."""
    return load(
        {
            "federation": {"name": fresh_name()},
            "broker": {"bootstrap_servers": servers},
            "codec": cell.codec.settings(),
            "aggregation": {"buffer_size": cell.clients, "deadline_seconds": _LONG_SECONDS},
            "staleness": {"maximum": _NEVER_STALE},
            "task": {"entry": f"noop:{cell.numel}", "shards": cell.clients},
            "client": {"wait_seconds": _LONG_SECONDS},
            "runtime": {"torch_threads": threads, "log_level": "warning"},
        }
    )


def write_delta(folder: Path, numel: int) -> Path:
    """A file of the noise that every client publishes, float32; they map it, so that it is in memory once."""
    path = folder / f"delta-{numel}"
    values = torch.from_file(str(path), shared=True, size=numel)
    values.normal_(std=1e-3, generator=torch.Generator().manual_seed(0))
    return path
