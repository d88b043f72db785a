"""`wandb-offline:FOLDER`: offline runs of Weights & Biases, which `wandb sync` uploads.

Its library has no reader of them in all releases; their format is a public one.

A row of a run's history is a version or a part of what is known of it; `version` is its step.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.tracking.sink import Run, TrackerUnavailable, told_end, unwritable

_STEP = "version"
_BETWEEN_SECONDS = 0.1
_HEADER_BYTES, _BLOCK_BYTES = 7, 1 << 15
_PIECE = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbOffline:
    """Each opening adds an offline run of the same id: `wandb sync --append` uploads all as one."""

    def __init__(self, root: Path) -> None:
        self.target = f"wandb-offline:{root}"
        self._root = root
        self._run: Any = None

    def open(self, run: Run) -> Iterable[tuple[str, int]]:
        self.close()
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / "wandb").mkdir(exist_ok=True)
            files = sorted((self._root / "wandb").glob("offline-run-*/run-*.wandb"))
            name = run.name_among(path.stem.removeprefix("run-") for path in files)
            known = [point for path in files if path.stem == f"run-{name}" for point in _points(path)]
        except OSError as error:
            raise unwritable("wandb-offline", self._root, error) from error
        while list((self._root / "wandb").glob(f"offline-run-{datetime.now():%Y%m%d_%H%M%S}-{name}")):
            sleep(_BETWEEN_SECONDS)  # its folders are named by the second, and one would be written over
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True, x_disable_meta=True)
        try:
            self._run = wandb.init(
                project=run.federation, id=name, name=name, dir=self._root, mode="offline", settings=quiet
            )
        except (wandb.Error, OSError) as error:
            raise TrackerUnavailable(f"--to {self.target}: {error}") from error
        self._run.define_metric("*", step_metric=_STEP)
        return known

    def write(self, points: Sequence[Point]) -> None:
        rows: dict[tuple[int, int], dict[str, float]] = {}
        for point in points:
            rows.setdefault((point.step, point.time_ms), {})[point.name] = point.value
        for (step, time_ms), values in rows.items():
            self._run.log({**values, _STEP: step, "_timestamp": time_ms / 1000})

    def describe(self, settings: Mapping[str, str]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)

    def finish(self, end: Finish) -> None:
        self._run.summary.update(told_end(end))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
            wandb.teardown()  # its own process writes the file, and only its end says that all is there


def _points(path: Path) -> Iterator[tuple[str, int]]:
    """The name and the step of each value in a run's file, up to its end or to where a crash has cut it off."""
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if _STEP in row:
                step = int(json.loads(row.pop(_STEP)))
                yield from ((name, step) for name in row if not name.startswith("_"))


def records(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, which is a log as LevelDB writes it, behind a header of its own.

    Blocks of 32 KiB hold pieces of records: checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4:
    last), then the piece. No piece begins in the last 6 bytes of a block.
    """
    begun, at = b"", _HEADER_BYTES
    while True:
        if _BLOCK_BYTES - at % _BLOCK_BYTES < _PIECE.size:
            at += _BLOCK_BYTES - at % _BLOCK_BYTES
        if at + _PIECE.size > len(data):
            return
        _, length, kind = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or at + length > len(data):
            return
        begun = (b"" if kind in (_WHOLE, _FIRST) else begun) + data[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield begun
