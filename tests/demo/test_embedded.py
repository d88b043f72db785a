"""A whole federation in one process, to its end and to a stop in the middle."""

import re
from collections import Counter
from typing import Any

import pytest

from llmos_stream.config import load
from llmos_stream.demo import ClientMix, make_scenario
from llmos_stream.demo.scenario import Scenario
from llmos_stream.errors import TaskError
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.runtime import Shutdown
from llmos_stream.training.synthetic import BlobsTask
from llmos_stream.types import Event, EventKind, Role


def _scenario(mix: ClientMix, **stop: Any) -> Scenario:
    own = {
        "task": {"entry": "blobs"},
        "stop": stop,
        "client": {"wait_seconds": 1.0},
        "aggregation": {"buffer_size": 2},
        "runtime": {"torch_threads": 1, "log_level": "error"},
    }
    return make_scenario(load(own), mix)


async def test_it_learns_until_the_target() -> None:
    events: list[Event] = []
    scenario = _scenario(ClientMix(4, slow=1, late=0, leaving=1), target=0.97, max_seconds=60.0)
    await run_embedded(scenario.settings, scenario.clients, events.append, Shutdown())

    of_kind: dict[EventKind, list[Event]] = {}
    for event in events:
        of_kind.setdefault(event.kind, []).append(event)
    names = {own.client.id for own in scenario.clients}
    assert {event.data["client_id"] for event in of_kind[EventKind.CLIENT_JOINED]} == names
    assert {event.data["client_id"] for event in of_kind[EventKind.CLIENT_LEFT]} == names
    (end,) = of_kind[EventKind.RUN_FINISHED]
    assert end.data["reason"] == "target"
    published = [event.data["version"] for event in of_kind[EventKind.VERSION_PUBLISHED]]
    assert published == list(range(len(published)))
    assert end.data["version"] == published[-1]
    central = [event for event in of_kind[EventKind.EVALUATION] if event.role == "evaluator"]
    measured = {event.data["version"]: event.data["metrics"] for event in central}
    accuracies = [metrics["accuracy"] for metrics in measured.values() if isinstance(metrics, dict)]
    assert max(accuracies) >= 0.97 > accuracies[0]
    folded = Counter((event.data["client_id"], event.data["sequence"]) for event in of_kind[EventKind.UPDATE_FOLDED])
    assert {event.data.get("client_id") for event in of_kind[EventKind.EVALUATION]} == names | {None}
    assert len(folded) == 2 * (len(published) - 1)
    assert set(folded.values()) == {1}


class _Untested(BlobsTask):
    def test_batches(self, batch_size: int) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"entry": f"{__name__}:_Untested"}, "no central test data"),
        ({"entry": "blobs", "share": "0.*"}, r"2\.weight, 2\.bias of the model are each site's own"),
    ],
    ids=["no test data", "a head of each site's own"],
)
async def test_what_nobody_can_measure_centrally_is_learnt_all_the_same(
    task: dict[str, str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    given = {"task": task, "stop": {"max_versions": 3}, "client": {"wait_seconds": 1.0}}
    scenario = make_scenario(load(given), ClientMix(2, slow=0, late=0, leaving=0))
    with caplog.at_level("WARNING", "llmos_stream.training.model_evaluator"):
        await run_embedded(scenario.settings, scenario.clients, events.append, Shutdown())
    assert re.search(why, caplog.text)
    (end,) = [event for event in events if event.kind is EventKind.RUN_FINISHED]
    assert end.data["version"] == 3
    # The clients measure on their own data; no evaluator does.
    assert {event.role for event in events if event.kind is EventKind.EVALUATION} <= {Role.CLIENT}


async def test_a_stop_in_the_middle_lets_everyone_leave_in_order() -> None:
    events: list[Event] = []
    shutdown = Shutdown()

    def take(event: Event) -> None:
        events.append(event)
        if event.kind is EventKind.VERSION_PUBLISHED and event.data["version"] == 2:
            shutdown.request()

    scenario = _scenario(ClientMix(3, slow=1, late=1, leaving=0))
    await run_embedded(scenario.settings, scenario.clients, take, shutdown)
    kinds = Counter(event.kind for event in events)
    assert kinds[EventKind.RUN_FINISHED] == 0
    assert kinds[EventKind.VERSION_PUBLISHED] >= 3
    left = [event for event in events if event.kind is EventKind.CLIENT_LEFT]
    assert {event.data["reason"] for event in left} == {"stopped"}
    # The late one had not joined yet.
    assert {event.data["client_id"] for event in left} == {"client-0", "client-2-slow"}


async def test_a_stop_before_the_start() -> None:
    events: list[Event] = []
    shutdown = Shutdown()
    shutdown.request()
    scenario = _scenario(ClientMix(2, slow=0, late=0, leaving=0))
    await run_embedded(scenario.settings, scenario.clients, events.append, shutdown)
    assert not [event for event in events if event.kind is EventKind.UPDATE_FOLDED]


async def test_a_task_that_cannot_be_loaded() -> None:
    settings = load({"task": {"entry": "nowhere:make"}})
    scenario = make_scenario(settings, ClientMix())
    with pytest.raises(TaskError, match="there is no module nowhere"):
        await run_embedded(scenario.settings, scenario.clients, list[Event]().append, Shutdown())
