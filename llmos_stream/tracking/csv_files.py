"""`csv:FOLDER`: a folder for each run, with `metrics.csv` (step, time, name, value) and `run.csv` (name, value)."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.tracking.sink import Run, run_folder, told_end, unwritable

_COLUMNS = ("step", "time", "name", "value")


class CsvFiles:
    """Rows are appended. One that a crash has cut off at the end is taken away before."""

    def __init__(self, root: Path) -> None:
        self.target = f"csv:{root}"
        self._root = root
        self._folder = root
        self._file: TextIO | None = None
        self._told: dict[str, str] = {}

    def open(self, run: Run) -> Iterable[tuple[str, int]]:
        self.close()
        self._folder = run_folder(self._root, run, "csv")
        self._told = {"federation": run.federation, "run": self._folder.name} | self._read_told()
        path = self._folder / "metrics.csv"
        try:
            known = list(_rows_kept(path))
            self._file = path.open("a", encoding="utf-8", newline="")
            if not path.stat().st_size:
                _writer(self._file).writerow(_COLUMNS)
        except OSError as error:
            raise unwritable("csv", path, error) from error
        return known

    def write(self, points: Sequence[Point]) -> None:
        if self._file is None:
            raise ValueError("it is not open")
        rows = ((point.step, _time(point.time_ms), point.name, repr(point.value)) for point in points)
        try:
            _writer(self._file).writerows(rows)
            self._file.flush()
        except OSError as error:
            raise unwritable("csv", self._folder, error) from error

    def describe(self, settings: Mapping[str, str]) -> None:
        self._tell(settings)

    def finish(self, end: Finish) -> None:
        self._tell(told_end(end) | {"finished_at": _time(end.time_ms)})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tell(self, told: Mapping[str, str]) -> None:
        self._told |= told
        path = self._folder / "run.csv"
        new = path.with_suffix(".new")
        try:
            with new.open("w", encoding="utf-8", newline="") as file:
                _writer(file).writerows([("name", "value"), *self._told.items()])
            new.replace(path)
        except OSError as error:
            raise unwritable("csv", path, error) from error

    def _read_told(self) -> dict[str, str]:
        path = self._folder / "run.csv"
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) == 2}


def _rows_kept(path: Path) -> Iterator[tuple[str, int]]:
    """The name and the step of each row; what is behind the last whole line is cut off."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if (end := data.rfind(b"\n") + 1) < len(data):
            os.truncate(path, end)
    for row in csv.DictReader(io.StringIO(data[:end].decode(), newline="")):
        yield row["name"], int(row["step"])


def _writer(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
