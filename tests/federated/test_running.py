"""`FederatedLearning` as a client of a federation that runs on Kafka."""

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llmos_stream import FederatedLearning
from llmos_stream.broker import connect
from llmos_stream.codec import Layout
from llmos_stream.config import Settings, load
from llmos_stream.errors import StateError
from llmos_stream.roles.aggregator import Initial, run_aggregator
from llmos_stream.runtime import Background, Offload, Shutdown
from llmos_stream.training import shared_tensors
from llmos_stream.training.local import evaluate
from tests.conftest import KafkaNode
from tests.federated.aids import batches_of, model_of, plain_epoch, same_weights, told_of_trained


@pytest.fixture
def running(
    request: pytest.FixtureRequest,
    kafka: KafkaNode,
    federation: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Settings]:
    """A federation on Kafka with room for two updates a version, unless the parameter sets something else.

    Its settings are in the environment.
    """
    for name, value in {
        "BROKER__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "FEDERATION__NAME": federation,
        "CODEC__NAME": "float32",
        "VERSIONS__FULL_EVERY": "1",
        "CLIENT__WAIT_SECONDS": "20",
        "AGGREGATION__BUFFER_SIZE": "2",
        "AGGREGATION__DEADLINE_SECONDS": "600",
        **getattr(request, "param", {}),
    }.items():
        monkeypatch.setenv(f"LLMOS_{name}", value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = load()
    tensors = shared_tensors(model_of(), "all")
    layout = Layout.of(tensors)
    initial = Initial(layout, layout.flatten(tensors))
    shutdown = Shutdown()

    async def aggregate() -> None:
        async with connect(settings.broker) as broker, Offload(1) as offload:
            await run_aggregator(broker, settings, lambda: initial, offload, shutdown)

    background = Background("aggregator")
    future = background.start(aggregate())
    yield settings
    background._loop.call_soon_threadsafe(shutdown.request)
    future.result(timeout=60)
    background.close()


@pytest.mark.kafka
def test_two_clients_of_a_running_federation(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    models, clients = [model_of(), model_of()], []
    for number, model in enumerate(models):
        monkeypatch.setenv("LLMOS_CLIENT__ID", f"client-{number}")
        clients.append(FederatedLearning(model, batches_of(2), torch.optim.SGD(model.parameters(), lr=0.1)))
    one, other = clients
    expected = model_of()
    plain_epoch(expected, batches_of(2), torch.optim.SGD(expected.parameters(), lr=0.1))
    try:
        first = [one.train(0), other.train(0)]
        # Both trained on version 0, on the same data: their mean is what either of them made.
        assert same_weights(one.get_global_model(), expected)
        second = [one.train(1), other.train(1)]
        assert int(str(second[0]["sequence"])) == int(str(first[0]["sequence"])) + 1
    finally:
        one.close()
        other.close()
    assert [answer["version"] for answer in first + second] == [0, 0, 1, 1]


@pytest.mark.kafka
def test_two_clients_measure_what_the_other_has_trained(running: Settings) -> None:
    """What each makes of version 0 is measured by both, on their own data."""
    models, held = [model_of(), model_of()], [batches_of(3)[2:], batches_of(4)[3:]]
    clients = [
        FederatedLearning(
            model,
            batches_of(2 + place),
            torch.optim.SGD(model.parameters(), lr=0.1),
            validation=held[place],
            settings={"client": {"id": name, "share_local": True, "share_local_every": 1}},
        )
        for place, (name, model) in enumerate(zip(("north", "south"), models, strict=True))
    ]
    made: list[nn.Module] = []
    told: dict[tuple[str, str], float] = {}
    try:
        for number in range(20):
            for client in clients:
                assert client.train(number)["version"] == number
            if number == 0:
                made = [copy.deepcopy(model) for model in models]
            told = {
                (data["client_id"], data["trained_by"]): data["metrics"]["loss"]
                for data in told_of_trained(clients[0])
                if data["since"] == 0
            }
            if len(told) == 4:
                break
    finally:
        for client in clients:
            client.close()
    expected = {
        (site, trainer): evaluate(model, batches)["loss"]
        for site, batches in zip(("north", "south"), held, strict=True)
        for trainer, model in zip(("north", "south"), made, strict=True)
    }
    assert told == pytest.approx(expected, rel=1e-5)


@pytest.mark.kafka
def test_two_clients_with_one_name_are_refused(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__ID", "same")
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, batches_of(1), optimizer), pytest.raises(StateError, match="running already"):
        FederatedLearning(model, batches_of(1), optimizer)


class _Between:
    """Batches; something happens while they are trained on."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens
        self.times = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.times += 1
        if self.times == 1:
            self.happens()
        return iter(batches_of(2))


@pytest.mark.kafka
@pytest.mark.parametrize("running", [{"AGGREGATION__BUFFER_SIZE": "1", "STALENESS__MAXIMUM": "1"}], indirect=True)
def test_an_update_that_became_too_old_is_told_and_not_sent(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = model_of(), model_of()
    monkeypatch.setenv("LLMOS_CLIENT__ID", "fast")
    with FederatedLearning(fast, batches_of(1), torch.optim.SGD(fast.parameters(), lr=0.1)) as one:

        def overtake() -> None:
            assert [one.train(epoch)["version"] for epoch in range(3)] == [0, 1, 2]

        monkeypatch.setenv("LLMOS_CLIENT__ID", "slow")
        with FederatedLearning(slow, _Between(overtake), torch.optim.SGD(slow.parameters(), lr=0.1)) as other:
            told = other.train(0)
            assert told["version"] == 0
            assert str(told["rejected"]).startswith("too_stale: base version 0 is ")
            assert "sequence" not in told
            again = other.train(1)
    assert int(again["version"]) >= 2
    assert "sequence" in again


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
@pytest.mark.parametrize(
    "running",
    [{"AGGREGATION__BUFFER_SIZE": "1", "BROKER__CONNECT_TIMEOUT_SECONDS": "1", "CLIENT__WAIT_SECONDS": "3"}],
    indirect=True,
)
def test_a_kafka_that_goes_between_and_during_calls_costs_time_only(running: Settings, kafka: KafkaNode) -> None:
    node = kafka.own()
    coming: list[threading.Thread] = []

    def goes() -> None:
        node.kill()
        coming.append(threading.Thread(target=node.start))
        coming[-1].start()

    model = model_of()
    with FederatedLearning(model, _Between(goes), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        answers = [fl.train(0)]
        coming[0].join()
        goes()
        answers += [fl.train(epoch) for epoch in (1, 2)]
        coming[1].join()
        sequences = [int(answer["sequence"]) for answer in answers]
        assert sequences == list(range(sequences[0], sequences[0] + 3))
        fl.get_global_model()


@pytest.mark.kafka
@pytest.mark.parametrize("running", [{"AGGREGATION__BUFFER_SIZE": "1"}], indirect=True)
def test_an_update_that_an_earlier_process_left_is_sent(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__ID", "left")
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    async def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    with FederatedLearning(model, batches_of(1), optimizer) as fl:
        monkeypatch.setattr(fl._membership._joined, "_send", interrupted)
        with pytest.raises(CancelledError):
            fl.train(0)
    with FederatedLearning(model, batches_of(1), optimizer) as fl:
        membership = fl._membership
        versions = [membership.run(membership.next_version()).head]  # which sends it
        while versions[-1].number == 0:
            versions.append(membership.run(membership.newest()).head)
        (contribution,) = versions[-1].manifest
        assert int(fl.train(1)["sequence"]) == contribution.sequence + 1


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
def test_closing_while_nobody_answers_takes_seconds(
    running: Settings, kafka: KafkaNode, caplog: pytest.LogCaptureFixture
) -> None:
    node, model = kafka.own(), model_of()
    fl = FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1))
    fl.train(0)
    node.kill()
    try:
        begun = time.monotonic()
        fl.close()
        assert time.monotonic() - begun < 30  # a request may take 40
    finally:
        node.start()
    assert "the federation was left without a farewell" in caplog.text
