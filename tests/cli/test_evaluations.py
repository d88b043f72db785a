"""`llmos-stream evaluations`: by version, by site, one site, as JSON; and on a real Kafka."""

import asyncio
from typing import Any

import pytest

from llmos_stream.broker import connect
from llmos_stream.cli import evaluations
from llmos_stream.config import Settings
from llmos_stream.log.events import emit
from llmos_stream.reporting import History
from llmos_stream.types import Event, EventKind, Role
from tests.cli.aids import Run
from tests.conftest import KafkaNode
from tests.roles.aids import aggregator, delta_of, settings_for, update


def _measured(client: str | None, version: int, count: int = 10, **metrics: float | None) -> Event:
    data: dict[str, object] = {"version": version, "metrics": metrics, "num_examples": count}
    if client is None:
        return Event(EventKind.EVALUATION, Role.EVALUATOR, 1000 + version, data)
    return Event(EventKind.EVALUATION, Role.CLIENT, 1000 + version, data | {"client_id": client})


def _folded(client: str, version: int) -> Event:
    data = {"client_id": client, "sequence": version, "version": version, "weight": 1.0}
    return Event(EventKind.UPDATE_FOLDED, Role.AGGREGATOR, 1000 + version, data)


_RUN = [
    *(_folded(client, 1) for client in ("ward-1", "ward-2", "ward-10")),
    _measured(None, 1, 100, accuracy=0.6, loss=1.5, f1=0.55),
    _measured("ward-1", 1, 30, accuracy=0.5, loss=1.25, f1=0.4),
    _measured("ward-2", 1, 10, accuracy=0.7, loss=1.0, f1=0.6),
    _measured("ward-10", 1, 10, accuracy=0.9, loss=None),
    _measured("ward-1", 2, 30, accuracy=0.75),
    _measured("[b]stranger", 2, 10, accuracy=1.0),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    for event in _RUN:
        history.add(event)

    async def read(_: object) -> History:
        return history

    monkeypatch.setattr(evaluations, "_read", read)


@pytest.mark.usefixtures("run")
def test_it_shows_versions_and_sites(llmos: Run) -> None:
    done = llmos("evaluations")
    assert done.status == 0
    assert done.out.splitlines() == [
        "version  metric    central  mean of sites  spread  worst site  its value  sites",
        "1        accuracy  0.6      0.62           0.163   ward-1      0.5        3",
        "1        loss      1.5      1.19           0.125   ward-1      1.25       2 (1 not finite)",
        "1        f1        0.55     0.45           0.1     ward-1      0.4        2",
        "2        accuracy  -        0.75           0       ward-1      0.75       1",
        "",
        "site         newest version  measured                       examples  versions measured",
        "ward-1       2               accuracy 0.75                  30        2",
        "ward-2       1               accuracy 0.7, loss 1, f1 0.6   10        1",
        "ward-10      1               accuracy 0.9, loss not finite  10        1",
        "[b]stranger  2               accuracy 1                     10        1                  "
        "not counted: no update of it was folded",
    ]
    assert len(llmos("evaluations", "--last", "1").out.splitlines()) == 8


@pytest.mark.usefixtures("run")
def test_it_shows_the_federations_model_against_those_trained_alone(
    llmos: Run,
) -> None:
    history = asyncio.run(evaluations._read(Settings()))
    alone: dict[str, object] = {"trained_by": "ward-2", "since": 0}
    told = _measured("ward-2", 1, 10, accuracy=0.5)
    history.add(Event(told.kind, told.role, told.time_ms, dict(told.data) | alone))
    assert [line.split() for line in llmos("evaluations").out.splitlines()[-3:]] == [
        ["accuracy", "of", "since", "version", "ward-2", "ward-1", "ward-10"],
        ["the", "federation's", "-", "0.7", "0.75", "0.9"],
        ["ward-2", "alone", "0", "0.5", "-", "-"],
    ]
    (models,) = [one["models"] for one in llmos("evaluations", "--json").json()["sites"] if one["site"] == "ward-2"]
    assert models == [
        {"trained_by": "ward-2", "since": 0, "version": 1, "num_examples": 10, "metrics": {"accuracy": 0.5}}
    ]


@pytest.mark.usefixtures("run")
def test_it_shows_one_sites_history(llmos: Run) -> None:
    done = llmos("evaluations", "--site", "ward-1")
    assert [line.split() for line in done.out.splitlines()] == [
        ["version", "measured", "examples"],
        ["1", "accuracy", "0.5,", "loss", "1.25,", "f1", "0.4", "30"],
        ["2", "accuracy", "0.75", "30"],
    ]
    done = llmos("evaluations", "--site", "ward-3")
    assert done.status != 0
    assert done.error().startswith("--site: ward-3 has told nothing; [b]stranger, ward-1, ward-2, ward-10")


@pytest.mark.usefixtures("run")
def test_it_prints_all_of_it_for_scripts(llmos: Run) -> None:
    told = llmos("evaluations", "--json").json()
    assert told["evaluator"] == [{"version": 1, "metrics": {"accuracy": 0.6, "loss": 1.5, "f1": 0.55}}]
    assert {one["site"]: one["counts"] for one in told["sites"]} == {
        "ward-1": True,
        "ward-2": True,
        "ward-10": True,
        "[b]stranger": False,
    }
    assert told["sites"][2]["versions"][0]["metrics"] == {"accuracy": 0.9, "loss": None}
    first, second = told["together"]
    assert (first["sites"], first["num_examples"], second["sites"]) == (3, 50, 1)
    assert first["metrics"]["accuracy"]["mean"] == pytest.approx(0.62)
    assert told["now"]["metrics"]["accuracy"]["worst_value"] == 0.7


@pytest.mark.kafka
def test_it_reads_a_real_log(llmos: Run, kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write() -> None:
        settings = settings_for(federation)
        async with connect(kafka.settings()) as broker, aggregator(broker, settings) as running:
            await running.send(update(delta_of(1.0), client_id="a"), "a")
            await running.version(1)
            now: Any = {"time_ms": running.federation.clock.time_ms()}
            async with broker.producer() as producer:
                for event in (_measured("a", 1, accuracy=0.5), _measured("a", 7, accuracy=0.9)):
                    told = Event(event.kind, event.role, now["time_ms"], event.data)
                    await emit(producer, running.topics.evaluations, told)

    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    asyncio.run(write())
    told = llmos("evaluations", "--federation.name", federation, "--json").json()
    assert [(one["site"], len(one["versions"])) for one in told["sites"]] == [("a", 1)]  # version 7 never was
    assert told["now"]["metrics"]["accuracy"]["mean"] == 0.5
