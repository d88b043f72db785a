"""The data that ship are whole, and are split by site as they are."""

from collections import Counter
from pathlib import Path

import pytest

from llmos_stream.errors import TaskError
from llmos_stream.scenarios import SCENARIOS, tables
from llmos_stream.scenarios.site_task import SiteTask
from tests.scenarios.small import settings_of

_FOLDER = Path(tables.__file__).parent / "data"


def test_the_tables_are_those_that_were_published() -> None:
    assert {path.name.partition(".")[0] for path in _FOLDER.iterdir()} == set(tables.DIGESTS)
    assert {name: len(tables.read_table(name)) for name in tables.DIGESTS if name != "speeches"} == {
        "heart": 920,
        "lending": 9857,
        "sensors": 18914,
    }
    assert len(tables.read_lines("speeches")) == 21
    assert Counter(row["site"] for row in tables.read_table("heart")) == {
        "Cleveland": 304,
        "Hungary": 293,
        "VA Long Beach": 200,
        "Switzerland": 123,
    }
    assert sum(row["outcome"] == "bad" for row in tables.read_table("lending")) == 517


def test_the_wheel_stays_small() -> None:
    assert sum(path.stat().st_size for path in _FOLDER.iterdir()) < 740_000


def test_a_table_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tables.read_table.cache_clear()
    monkeypatch.setitem(tables.DIGESTS, "heart", "0" * 64)
    with pytest.raises(TaskError, match="the data of heart are not those"):
        tables.read_table("heart")
    tables.read_table.cache_clear()


def _task(name: str, **options: object) -> SiteTask:
    settings = settings_of(name).changed(task={"options": options})
    return SCENARIOS[name].task(settings.task, settings.client)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_row_of_a_site_is_in_one_part(name: str) -> None:
    task = _task(name)
    for site in task.sites:
        parts = task.split(site)
        sizes = [len(part.targets) for part in parts]
        assert min(sizes) > 0
        assert min(sizes[0], sizes[2]) > sizes[1]
        assert all(part.inputs.isfinite().all() for part in parts)
        assert task.split(site) is parts
    counted = {"heart": 920, "lending": sum(len(one.targets) for site in task.sites for one in task.split(site))}
    if name in counted:
        assert sum(len(part.targets) for site in task.sites for part in task.split(site)) == counted[name]


def test_complete_rows_are_those_that_flamby_has() -> None:
    task = _task("heart", rows="complete")
    sizes = {site: sum(len(part.targets) for part in task.split(site)) for site in task.sites}
    # This copy of the table names Cleveland for one row that FLamby has at Hungary.
    assert sizes == {"Cleveland": 304, "Hungary": 260, "VA Long Beach": 130, "Switzerland": 46}
    with pytest.raises(TaskError, match="rows=all or rows=complete"):
        _task("heart", rows="some")


def test_lenders_have_fifty_loans_or_more() -> None:
    assert len(_task("lending").sites) == 37


def test_a_hospital_may_scale_by_its_own_rows() -> None:
    task = _task("heart", scaling="site")
    for site in task.sites:
        columns = task.split(site).train.inputs[:, :4]  # no gap is left in them; Switzerland has no cholesterol
        measured = [column for column in columns.T if column.std() > 0]
        assert len(measured) >= 3
        for column in measured:
            assert abs(float(column.mean())) < 1e-5
            assert float(column.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(TaskError, match="scaling=constants or scaling=site"):
        _task("heart", scaling="none")
