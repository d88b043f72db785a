"""`csv:FOLDER`, read back with csv and with pandas."""

import csv
import os
from pathlib import Path

import pandas
import pytest

from llmos_stream.tracking.csv_files import CsvFiles, _rows_kept
from llmos_stream.tracking.sink import TrackerUnavailable
from tests.tracking.places import RUN, expected, in_steps, points, put


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv(tmp_path: Path) -> None:
    in_steps(lambda: CsvFiles(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert folder.name == RUN.name
    rows = _rows(folder / "metrics.csv")
    assert len(rows) == 27
    assert {(row["name"], int(row["step"]), float(row["value"])) for row in rows} == {
        (point.name, point.step, point.value) for point in expected()
    }
    assert rows[0]["time"] == "2026-09-21T14:13:20.005+00:00"
    told = {row["name"]: row["value"] for row in _rows(folder / "run.csv")}
    assert told["federation"] == "ward"
    assert told["aggregation.buffer_size"] == "8"
    assert (told["finished"], told["version"]) == ("target", "8")


def test_csv_read_by_pandas(tmp_path: Path) -> None:
    put(CsvFiles(tmp_path), points(0, 8))
    frame = pandas.read_csv(tmp_path / RUN.name / "metrics.csv", parse_dates=["time"])
    wide = frame.pivot_table(index="step", columns="name", values="value")
    assert list(wide.columns) == ["client/ward-7/loss", "evaluation/accuracy", "version/contributions"]
    assert wide.loc[8, "evaluation/accuracy"] == 0.8


def test_csv_goes_on_after_a_row_that_was_cut_off(tmp_path: Path) -> None:
    put(CsvFiles(tmp_path), points(0, 4))
    path = tmp_path / RUN.name / "metrics.csv"
    os.truncate(path, path.stat().st_size - 7)
    assert put(CsvFiles(tmp_path), points(0, 4)) == 1
    assert {(row["name"], int(row["step"])) for row in _rows(path)} == {(p.name, p.step) for p in points(0, 4)}
    assert len(_rows(path)) == 15


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackerUnavailable, match=r"^--to csv:.*file: cannot be written \(.*\); name a folder"):
        CsvFiles(tmp_path / "file").open(RUN)


def test_a_name_may_hold_what_unicode_calls_an_end_of_a_line(tmp_path: Path) -> None:
    """What lies there is found again after a restart, so that no row is written twice."""
    names = ["sites/one\u2028two", "sites/three\x85four", "sites/five\nsix"]
    path = tmp_path / "metrics.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "step"), *((name, 3) for name in names)])
    assert list(_rows_kept(path)) == [(name, 3) for name in names]
