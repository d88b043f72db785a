"""`mlflow:URI`, read back with MLflow's client from a store in SQLite."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from llmos_stream.reporting.history.points import Point
from llmos_stream.tracking.mlflow import Mlflow
from llmos_stream.tracking.sink import TrackerUnavailable
from tests.tracking.places import FINISH, RUN, SETTINGS_GIVEN, START_MS, expected, in_steps


@pytest.mark.full
@pytest.mark.timeout(300)
def test_mlflow_in_sqlite(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    in_steps(lambda: Mlflow(uri))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ward")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == RUN.name
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", START_MS, FINISH.time_ms)
    assert run.data.params == SETTINGS_GIVEN
    assert run.data.tags["changed.aggregation.buffer_size"] == "8"
    assert run.data.tags["llmos.finished"] == "target"
    found = [
        Point(name, item.step, item.timestamp, item.value)
        for name in run.data.metrics
        for item in client.get_metric_history(run.info.run_id, name)
    ]
    assert len(found) == 27
    assert set(found) == expected()


def test_an_mlflow_that_does_not_answer_is_told_in_one_line(nobody: str) -> None:
    with pytest.raises(TrackerUnavailable) as caught:
        Mlflow(f"http://{nobody}").open(RUN)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--to mlflow:http://{nobody}: ")
    assert str(caught.value).endswith("start `mlflow server` there, or name another")
