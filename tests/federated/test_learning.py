"""`FederatedLearning`: the seed's loop, alone."""

import asyncio
import copy
import gc
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream import FederatedLearning
from llmos_stream.broker import Producer
from llmos_stream.config import load
from llmos_stream.errors import BrokerUnavailable, Closed, ConfigError, TaskError
from llmos_stream.log.events import emit
from llmos_stream.telemetry.tracing import tracing
from llmos_stream.training.local import evaluate
from llmos_stream.training.metrics import Metric
from llmos_stream.types import Event, EventKind
from tests.federated.aids import batches_of, model_of, plain_epoch, same_weights
from tests.gpu import DEVICES
from tests.monitoring.collector import collector


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_one_client_alone_equals_plain_local_training(optimizer: type[torch.optim.Optimizer], device: str) -> None:
    settings = load({"codec": {"name": "float32"}, "aggregator": {"device": device}})
    local, federated, batches = model_of(), model_of().to(device), batches_of()
    plain = optimizer(local.parameters(), lr=0.05)  # type: ignore[call-arg]
    own = optimizer(federated.parameters(), lr=0.05)  # type: ignore[call-arg]
    with FederatedLearning(federated, batches, own, settings=settings) as fl:
        for epoch in range(4):
            plain_epoch(local, batches, plain)
            metrics = fl.train(epoch)
            assert metrics["version"] == epoch
        global_model = fl.get_global_model()
        assert {parameter.device.type for parameter in global_model.parameters()} == {device}
        assert same_weights(global_model.cpu(), local, atol=1e-6 if device == "cpu" else 1e-5)


def test_of_a_model_in_fragments_a_client_goes_on_with_what_it_has_not_sent() -> None:
    """One alone trains as without a federation, version after version, though it sends a fragment of it at a time."""
    settings = load(
        {
            "codec": {"name": "float32"},
            "aggregation": {"fragments": 2, "buffer_size": 1},
            "versions": {"full_every": 1},
        }
    )
    local, federated, batches = model_of(), model_of(), batches_of()
    plain, own = (torch.optim.SGD(model.parameters(), lr=0.05) for model in (local, federated))
    with FederatedLearning(federated, batches, own, settings=settings) as fl:
        for epoch in range(5):
            plain_epoch(local, batches, plain)
            metrics = fl.train(epoch)
            assert metrics["version"] == epoch
            assert same_weights(federated, local)
            whole = 4 * sum(parameter.numel() for parameter in local.parameters())
            assert int(metrics["raw_bytes"]) < whole
        assert not same_weights(fl.get_global_model(), local)  # it lacks what the client has not sent


def test_the_seeds_loop_as_written() -> None:
    """As in the README: nothing set, a DataLoader, int8 with error feedback, no closing."""
    model, num_epochs = model_of(), 5
    data = batches_of()
    dataset = TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
    data_loader = DataLoader(dataset, batch_size=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    fl = FederatedLearning(model, data_loader, optimizer)
    history = [fl.train(epoch) for epoch in range(num_epochs)]
    global_model = fl.get_global_model()
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    assert {"epoch", "loss", "accuracy", "num_examples", "version", "sent_bytes", "raw_bytes"} <= history[0].keys()
    assert history[0]["num_examples"] == 256
    assert int(history[0]["sent_bytes"]) < int(history[0]["raw_bytes"])
    assert global_model is not model
    fl.close()
    fl.close()


def test_an_epoch_is_one_trace_to_the_version_it_made() -> None:
    model, batches = model_of(), batches_of(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with collector() as collected:
        settings = load({"tracing": collected.settings.model_dump()})
        with FederatedLearning(model, batches, optimizer, settings=settings) as fl:
            assert not tracing()  # what the caller does around it is not ours to trace
            for epoch in range(2):
                fl.train(epoch)
            fl.get_global_model()
        assert not tracing()
        spans = {span.span_id: span for _, span in collected.spans}  # all of them: the last are sent by close
    by_name = {span.name: span for span in spans.values() if span.name != "version.apply"}
    parents = {name: spans[span.parent_span_id].name if span.parent_span_id else None for name, span in by_name.items()}
    assert parents == {
        "client.update": None,
        "client.train": "client.update",
        "client.encode": "client.update",
        "client.publish": "client.update",
        "aggregator.fold": "client.publish",
        "aggregator.version": "aggregator.fold",
    }
    updates = [span for span in spans.values() if span.name == "client.update"]
    linked = [spans[link.span_id].name for span in updates for link in span.links]
    assert linked == ["aggregator.version"] * 2  # each begins with a version


def test_any_model_loss_and_iterable() -> None:
    model = nn.Linear(3, 1)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    class Stream:
        def __iter__(self) -> "Stream":
            self.left = 4
            return self

        def __next__(self) -> tuple[Tensor, Tensor]:
            if not self.left:
                raise StopIteration
            self.left -= 1
            x = torch.ones(8, 3) * self.left
            return x, x.sum(dim=1, keepdim=True)

    with FederatedLearning(model, Stream(), optimizer, loss=mse_loss) as fl:
        metrics = fl.train(0)
        assert "accuracy" not in metrics
        assert math.isfinite(float(metrics["loss"]))
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert not torch.equal(model.weight, start["weight"])


def test_new_weights_come_in_under_the_optimiser() -> None:
    model = model_of()
    parameters = [id(parameter) for parameter in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with FederatedLearning(model, batches_of(2), optimizer) as fl:
        fl.train(0)
        fl.train(1)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(parameters)
    assert len(optimizer.state) == len(parameters)


def test_an_exception_in_training_leaves_it_usable() -> None:
    model, batches = model_of(), batches_of(3)

    class Broken:
        def __init__(self) -> None:
            self.times = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.times += 1
            yield batches[0]
            if self.times == 1:
                raise RuntimeError("the disk is gone")
            yield from batches[1:]

    local = model_of()
    plain_epoch(local, batches, torch.optim.SGD(local.parameters(), lr=0.1))
    settings = load({"codec": {"name": "float32"}})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, Broken(), optimizer, settings=settings) as fl:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            fl.train(0)
        fl.train(0)
        # The half epoch left nothing behind: training started again from version 0.
        assert same_weights(fl.get_global_model(), local)


def test_a_loss_that_is_not_finite_is_told_and_not_sent() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bad = [(torch.full((4, 16), math.nan), torch.zeros(4, dtype=torch.long))]
    with FederatedLearning(model, bad, optimizer) as fl:
        with pytest.raises(TaskError, match="check the data"):
            fl.train(0)
        assert all(torch.isfinite(p).all() for p in fl.get_global_model().parameters())


def test_closing_leaves_no_thread_and_refuses_more() -> None:
    before = threading.active_count()
    model = model_of()
    with FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        fl.train(0)
    assert threading.active_count() == before
    with pytest.raises(Closed, match="make a new one"):
        fl.train(1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    model = model_of()
    with FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        fl.train(0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                fl.train(1)
            except Closed as error:
                os.write(write, f"{type(error).__name__}: {error}".encode())
            finally:
                fl.close()
                os._exit(7)
        os.close(write)
        with os.fdopen(read) as told:
            said = told.read()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert said.startswith("Closed: this FederatedLearning object ")
        assert "fork" in said
        assert "loss" in fl.train(1)


def test_the_end_of_the_run_is_told(tmp_path: Path) -> None:
    settings = load({"stop": {"max_versions": 2}})
    model = model_of()
    with FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1), settings=settings) as fl:
        answers = [fl.train(epoch) for epoch in range(4)]
        assert fl.finished is not None
        assert fl.finished.startswith("max_versions")
    assert ["finished" in answer for answer in answers] == [False, False, True, True]
    assert answers[-1]["version"] == 2


def test_federation_broker_and_settings_may_be_given_in_short() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(
        model, batches_of(1), optimizer, federation="ward", settings={"codec": {"name": "int4"}}
    ) as fl:
        assert "loss" in fl.train(0)
        assert (fl._settings.federation.name, fl._settings.codec.name) == ("ward", "int4")
    with pytest.raises(ConfigError, match="not HOST:PORT"):
        FederatedLearning(model, batches_of(1), optimizer, broker="localhost:abc")


def test_settings_that_make_no_sense_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CODEC__FRACTION", "7")
    model = model_of()
    with pytest.raises(ConfigError, match=r"codec\.fraction"):
        FederatedLearning(model, [], torch.optim.SGD(model.parameters(), lr=0.1))


def test_no_broker_there_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("LLMOS_BROKER__CONNECT_TIMEOUT_SECONDS", "0.5")
    model, before = model_of(), threading.active_count()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        FederatedLearning(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert threading.active_count() == before


def test_an_aggregator_that_cannot_run_says_why_at_once() -> None:
    settings = load({"server_optimizer": {"name": "adam", "epsilon": 1e-30}})
    model, before = model_of(), threading.active_count()
    with pytest.raises(ConfigError, match="epsilon"):
        FederatedLearning(model, [], torch.optim.SGD(model.parameters(), lr=0.1), settings=settings).train(0)
    gc.collect()
    assert threading.active_count() == before


def test_the_garbage_collector_may_close_it() -> None:
    """In a cycle it can be collected in any thread, its own among them."""
    model = model_of()
    fl = FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1))
    membership = fl._membership
    ended = threading.Event()

    async def collect() -> None:
        membership.close()
        ended.set()

    membership._background.start(collect())
    assert ended.wait(60)
    membership._background._thread.join(60)
    assert membership._background.closed
    with pytest.raises(Closed):
        fl.train(0)


def test_an_interrupt_in_the_middle_leaves_it_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while an update is on its way: the next one goes out as if nothing had been."""
    model = model_of()
    with FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        client = fl._membership._joined
        send = client._send

        async def interrupted(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(client, "_send", interrupted)
        with pytest.raises(CancelledError):
            fl.train(0)
        monkeypatch.setattr(client, "_send", send)
        assert "sequence" in fl.train(1)


def test_readers_that_broke_off_are_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    with FederatedLearning(model, batches_of(1), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        first = fl._membership._joined
        sequence = fl.train(0)["sequence"]

        async def broken(_: float) -> None:
            raise BrokerUnavailable("fetching broke off")

        monkeypatch.setattr(first._control, "poll", broken)
        answer = fl.train(1)
        assert fl._membership._joined is not first
        assert (answer["version"], answer["sequence"]) == (1, int(sequence) + 1)


@pytest.mark.parametrize(
    "ending",
    ["", *(pytest.param(how, marks=pytest.mark.full) for how in ("raise SystemExit(3)", "raise ValueError('mine')"))],
)
def test_a_script_that_never_closes_it_ends_by_itself(ending: str) -> None:
    script = f"""
import torch
from torch import nn
from llmos_stream import FederatedLearning
model = nn.Linear(2, 2)
batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
fl = FederatedLearning(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
print(fl.train(0)["version"])
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout == "0\n"
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3}.get(ending, 1)
    assert done.stderr.count("Traceback") == ("mine" in ending)


def test_versions_are_measured_on_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are trained on, in `train` and in a loop of one's own, and the federation is told."""
    told: list[Event] = []

    async def noting(producer: Producer, topic: str, entry: Event) -> None:
        told.append(entry)
        await emit(producer, topic, entry)

    monkeypatch.setattr("llmos_stream.roles.client.events.emit", noting)
    model, held_back = model_of(), batches_of(3)
    expected = evaluate(copy.deepcopy(model), held_back)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ones: dict[str, Metric] = {"ones": lambda *_: 1.0}
    with FederatedLearning(model, batches_of(), optimizer, validation=held_back, metrics=ones) as fl:
        first = fl.train(0)
        assert first["validation_loss"] == pytest.approx(expected["loss"])
        assert first["validation_ones"] == 1.0
        with fl.update() as update:
            assert update.version == 1
            assert update.evaluation is not None
            assert update.evaluation.metrics["loss"] < expected["loss"]
            update.num_examples = 1
    measured = [entry.data for entry in told if entry.kind is EventKind.EVALUATION]
    assert [(data["version"], data["num_examples"]) for data in measured] == [(0, 96), (1, 96)]


def test_what_is_held_back_must_be_there_for_each_version() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(TaskError, match="once"):
        FederatedLearning(model, batches_of(), optimizer, validation=(batch for batch in batches_of()))
