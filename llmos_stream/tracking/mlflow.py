"""`mlflow:URI`: a run of an MLflow experiment that has the federation's name. Metrics have versions as steps."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.tracking.sink import Run, TrackerUnavailable, told_end

_RUN, _FEDERATION = "llmos.run", "llmos.federation"
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
_LONGEST_VALUE = 6000
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Its own would hold a command up for minutes."""


class Mlflow:
    """A setting cannot be written twice there: one that changes in the course of the run becomes a tag."""

    def __init__(self, uri: str) -> None:
        self.target = f"mlflow:{uri}"
        self._uri = uri
        self._client: MlflowClient
        self._run_id = ""
        self._settings: dict[str, str] = {}
        self._is_over = False
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # that it makes its tables is no news of the run

    def open(self, run: Run) -> Iterable[tuple[str, int]]:
        with self._errors():
            self._client = client = MlflowClient(self._uri or None)
            experiment = client.get_experiment_by_name(run.federation)
            where = client.create_experiment(run.federation) if experiment is None else experiment.experiment_id
            there = client.search_runs([where], f"tags.`{_FEDERATION}` = '{run.federation}'")
            ids = {found.data.tags[_RUN]: found.info.run_id for found in there if _RUN in found.data.tags}
            name = run.name_among(ids)
            if name not in ids:
                tags = {_RUN: name, _FEDERATION: run.federation}
                ids[name] = client.create_run(where, run.started_ms, tags, name).info.run_id
            self._run_id = ids[name]
            found = client.get_run(self._run_id)
            self._settings, self._is_over = dict(found.data.params), found.info.status != "RUNNING"
            return [
                (key, point.step)
                for key in found.data.metrics
                for point in client.get_metric_history(self._run_id, key)
            ]

    def write(self, points: Sequence[Point]) -> None:
        with self._errors():
            if self._is_over:  # it has gone on
                self._client.update_run(self._run_id, status="RUNNING")
                self._is_over = False
            for begin in range(0, len(points), _METRICS_AT_ONCE):
                batch = points[begin : begin + _METRICS_AT_ONCE]
                found = [Metric(point.name, point.value, point.time_ms, point.step) for point in batch]
                self._client.log_batch(self._run_id, metrics=found)

    def describe(self, settings: Mapping[str, str]) -> None:
        given = {name: value[:_LONGEST_VALUE] for name, value in settings.items()}
        new = [Param(name, value) for name, value in given.items() if name not in self._settings]
        changed = [
            RunTag(f"changed.{name}", value)
            for name, value in given.items()
            if self._settings.get(name, value) != value
        ]
        with self._errors():
            for begin in range(0, max(len(new), len(changed)), _PARAMS_AT_ONCE):
                end = begin + _PARAMS_AT_ONCE
                self._client.log_batch(self._run_id, params=new[begin:end], tags=changed[begin:end])
        self._settings = {**given, **self._settings}

    def finish(self, end: Finish) -> None:
        with self._errors():
            tags = [RunTag(f"llmos.{name}", value) for name, value in told_end(end).items()]
            self._client.log_batch(self._run_id, tags=tags)
            self._client.set_terminated(self._run_id, "FINISHED", end.time_ms)
            self._is_over = True

    def close(self) -> None:
        pass

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            why = str(error).splitlines()[0][:300]
            hint = "start `mlflow server` there, or name another" if self._uri.startswith("http") else "name another"
            raise TrackerUnavailable(f"--to {self.target}: {why}; {hint}") from error
