"""A run as tables, with pandas and without."""

from datetime import UTC, datetime

import pandas
import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.errors import ConfigError
from llmos_stream.runtime import Offload
from llmos_stream.tracking import frames
from llmos_stream.tracking.frames import RunTables, history, read_tables
from tests.federation import federation_of
from tests.roles.aids import settings_for
from tests.tracking.aids import VERSIONS, write_run


async def _tables(broker: Broker) -> RunTables:
    await write_run(broker, "ward")
    async with Offload(1) as offload:
        return await read_tables(federation_of(broker, settings_for("ward"), offload))


async def test_as_lists_where_there_is_no_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "pd", None)
    async with MemoryBroker() as broker:
        run = await _tables(broker)
    assert [row["version"] for row in run.versions] == list(range(VERSIONS + 1))
    assert isinstance(run.versions[0]["time"], datetime)
    assert run.versions[0]["time"].tzinfo is UTC
    folded = [row for row in run.updates if row["verdict"] == "folded"]
    assert len(folded) == VERSIONS
    assert folded[2] == folded[2] | {
        "client_id": "client-0",
        "sequence": 2,
        "base_version": 2,
        "version": 3,
        "staleness": 0,
        "num_examples": 12,
        "loss": 1 / 3,
        "norm": 2.0,
    }
    (refused,) = (row for row in run.updates if row["verdict"] == "refused")
    assert (refused["client_id"], refused["sequence"], refused["reason"]) == ("client-1", 77, "not_finite")
    assert run.evaluations[-1]["accuracy"] == 0.1 * (VERSIONS - 1)
    assert {row["client_id"]: row["folded"] for row in run.clients} == {"client-0": 3, "client-1": 2}
    assert run.events[0]["kind"] == "version_published"
    assert run.settings["aggregation.buffer_size"] == "1"
    assert run.finished == "max_versions"
    assert run.summary["updates"] == VERSIONS
    assert repr(run) == "<run of 6 versions, 6 updates; finished: max_versions>"


async def test_as_data_frames() -> None:
    async with MemoryBroker() as broker:
        run = await _tables(broker)
    assert isinstance(run.updates, pandas.DataFrame)
    assert run.versions["contributions"].tolist() == [0, *[1] * VERSIONS]
    assert run.updates.groupby("client_id")["loss"].mean().round(4).to_dict() == {
        "client-0": round((1 + 1 / 3 + 1 / 5) / 3, 4),
        "client-1": round((1 / 2 + 1 / 4) / 2, 4),
    }
    assert run.evaluations.set_index("version").loc[VERSIONS, "loss"] == pytest.approx(0.9 - 0.1 * (VERSIONS - 1))
    assert str(run.versions["time"].dt.tz) == "UTC"


def test_a_broker_must_be_named() -> None:
    with pytest.raises(ConfigError, match="bootstrap_servers"):
        history("ward")
