"""`fl.update()`: the caller's own loop, between the version that comes and the update that goes."""

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llmos_stream import FederatedLearning
from llmos_stream.broker import connect
from llmos_stream.errors import Closed, TaskError
from llmos_stream.federated import Update
from llmos_stream.telemetry.tracing import tracing
from llmos_stream.testing import quick_settings, running_federation
from tests.conftest import KafkaNode
from tests.monitoring.collector import collector

EXACT: dict[str, Any] = {"codec": {"name": "float32"}, "client": {"wait_seconds": 60.0}}


def _model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def _batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 32, 16, generator=generator)
    return [(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()) for x in inputs]


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, *, accumulate: int = 1) -> float:
    """Mixed precision and accumulated gradients, as a loop of somebody's own has them."""
    loss = torch.zeros(())
    for number, (x, y) in enumerate(_batches(), start=1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), y)
        (loss / accumulate).backward()  # type: ignore[no-untyped-call]
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return float(loss.detach())


def _add(model: nn.Module, number: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(number)


def _same(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, atol=atol) for a, b in pairs)


@contextmanager
def _alone(model: nn.Module, **sections: dict[str, Any]) -> Iterator[FederatedLearning]:
    with FederatedLearning(model, settings=EXACT | sections) as fl:
        yield fl


def test_a_loop_of_ones_own_equals_local_training() -> None:
    local, federated = _model(), _model()
    plain = torch.optim.AdamW(local.parameters(), lr=0.05)
    own = torch.optim.AdamW(federated.parameters(), lr=0.05)
    with _alone(federated) as fl:
        for number in range(3):
            _epoch(local, plain, accumulate=2)
            with fl.update() as update:
                assert (update.version, update.finished) == (number, None)
                update.metrics["loss"] = _epoch(federated, own, accumulate=2)
                update.num_examples = 128
            assert update.rejected is None
            assert update.sent_bytes > 0
            assert update.seconds > 0
        assert _same(fl.get_global_model(), local)
        assert fl.outcomes["dropped"] == 0


def test_two_optimisers_and_what_the_update_says(caplog: pytest.LogCaptureFixture) -> None:
    model = _model()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    caplog.set_level("INFO", "llmos_stream")
    loss = torch.zeros(())
    with _alone(model) as fl:
        with fl.update() as first:
            for x, y in _batches():
                loss = cross_entropy(model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            first.num_examples, first.metrics["loss"] = torch.tensor(128), loss
        with fl.update() as second:
            second.num_examples = 1
    assert second.sequence == (first.sequence or 0) + 1
    assert f"loss {float(loss.detach()):.4f}, 128 examples" in caplog.text
    assert "update 1 on version 1: 1 examples" in caplog.text


def test_num_examples_is_required() -> None:
    model = _model()
    with _alone(model) as fl:
        for wrong in (None, 0, 1.5, True):
            with pytest.raises(TaskError, match=r"update\.num_examples"), fl.update() as update:
                update.num_examples = wrong  # type: ignore[assignment]
        with fl.update() as update:
            with pytest.raises(TaskError, match="not set"):
                update.send()
            update.num_examples = 3
        assert (update.version, update.sequence is None) == (0, False)


@pytest.mark.parametrize("metric", [float("nan"), "a word", torch.ones(2), None])
def test_a_metric_is_one_finite_number(metric: object) -> None:
    with _alone(_model()) as fl, fl.update() as update:
        update.num_examples = 1
        update.metrics["loss"] = metric
        with pytest.raises(TaskError, match=r"update\.metrics\['loss'\] is"):
            update.send()
        update.skip()


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"x" * 65: 1.0}, "1 to 64 printable"),
        ({"a\nb": 1.0}, "1 to 64 printable"),
        ({3: 1.0}, "1 to 64 printable"),
        ({str(number): 1.0 for number in range(65)}, "carries 64"),
    ],
)
def test_metrics_that_the_aggregator_would_refuse_are_refused_here(metrics: dict[Any, float], why: str) -> None:
    with _alone(_model()) as fl, fl.update() as update:
        update.num_examples, update.metrics = 1, metrics
        with pytest.raises(TaskError, match=why):
            update.send()
        update.metrics = {}


def test_weights_that_are_not_finite_are_told_and_not_sent() -> None:
    model = _model()
    with _alone(model) as fl:
        with fl.update() as update:
            update.num_examples = 1
            _add(model, float("nan"))
            with pytest.raises(TaskError, match=r"made 0\.weight not finite"):
                update.send()
            update.skip()
        with fl.update() as update:
            assert all(parameter.isfinite().all() for parameter in model.parameters())
            update.num_examples = 1
    assert update.sequence is not None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
def test_an_exception_publishes_nothing_and_leaves_it_usable(error: type[BaseException]) -> None:
    model, expected = _model(), _model()
    _add(expected, 1.0)
    updates: list[Update] = []
    with _alone(model) as fl:

        def broken() -> None:
            with fl.update() as update:
                updates.append(update)
                update.num_examples = 1
                _add(model, 5.0)
                raise error

        with pytest.raises(error):
            broken()
        assert updates[0].sequence is None
        with fl.update() as update:
            assert update.version == 0
            _add(model, 1.0)  # from version 0 again
            update.num_examples = 1
        assert _same(fl.get_global_model(), expected)


def test_a_skipped_update_is_not_sent() -> None:
    model, expected = _model(), _model()
    with _alone(model) as fl:
        with fl.update() as update:
            _add(model, 5.0)
            update.skip()
        assert update.sequence is None
        assert _same(fl.get_global_model(), expected)
        with fl.update() as update:
            assert update.version == 0
            update.num_examples = 1


def test_the_end_of_the_run_ends_the_loop() -> None:
    model = _model()
    with _alone(model, stop={"max_versions": 2}) as fl:
        versions = []
        for update in fl.updates():
            versions.append(update.version)
            _add(model, 1.0)
            update.num_examples = 1
        assert versions == [0, 1]
        assert str(fl.finished).startswith("max_versions")
        with fl.update() as late:
            assert (late.version, late.finished) == (2, fl.finished)
            _add(model, 9.0)  # to no effect: nothing is sent, so nothing has to be said of it
        assert late.sequence is None
        assert update.finished is None


def test_a_loop_that_is_left_sends_what_it_was_told_to() -> None:
    model = _model()
    with _alone(model) as fl:
        for update in fl.updates():
            update.num_examples = 1
            if update.version == 1:
                break
        assert update.sequence is None
        for update in fl.updates():
            update.num_examples = 1
            update.send()
            update.send()  # it is sent once
            break
        assert update.sequence is not None
        for sent in fl.updates():
            assert sent.version == 2
            break


def test_the_newest_version_is_that_of_the_update_under_way() -> None:
    """What the update began with must not be written over."""
    model, expected = _model(), _model()
    with _alone(model) as fl:
        with fl.update() as update:
            _add(model, 1.0)
            assert _same(fl.get_global_model(), expected)
            with pytest.raises(TaskError, match="under way"), fl.update():
                pass
            update.num_examples = 1
        with pytest.raises(TaskError, match="begun before"), update:
            pass
        with pytest.raises(TaskError, match="has not begun"):
            fl.update().send()


async def test_in_an_event_loop() -> None:
    model, expected = _model(), _model()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    beating = asyncio.ensure_future(beat())
    async with await asyncio.to_thread(FederatedLearning, model, settings=EXACT | {"stop": {"max_versions": 3}}) as fl:
        async with fl.update() as update:
            update.num_examples = 1
            before = beats
        assert beats > before  # the loop went on while it was sent
        with pytest.raises(TaskError, match="not set"):
            async with fl.update():
                pass
        async for update in fl.updates():
            _add(model, 1.0)
            update.num_examples = 1
        assert fl.finished
    _add(expected, 2.0)
    assert _same(model, expected, atol=1e-5)  # the last version is in the model
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating


async def test_two_tasks_cannot_begin_an_update_each() -> None:
    async with await asyncio.to_thread(FederatedLearning, _model(), settings=EXACT) as fl:
        one, other = fl.update(), fl.update()
        told = await asyncio.gather(one.abegin(), other.abegin(), return_exceptions=True)
        assert [type(error) for error in told] == [type(None), TaskError]
        one.num_examples = 1
        await one.asend()
        assert one.sequence is not None


async def test_a_wait_in_an_event_loop_can_be_cancelled() -> None:
    model = _model()
    settings = EXACT | {"aggregation": {"buffer_size": 2, "deadline_seconds": 3000}, "client": {"wait_seconds": 3000}}
    fl = await asyncio.to_thread(FederatedLearning, model, settings=settings)
    async with fl:
        async with fl.update() as update:
            update.num_examples = 1
        # Nobody makes a version of one update: the next waits.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), fl.update():
                pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), fl.update():
                pass


def test_a_closed_object_refuses_and_a_close_in_the_block_sends_nothing() -> None:
    threads = threading.active_count()
    model = _model()
    fl = FederatedLearning(model)
    with pytest.raises(TaskError, match="data_loader"):
        fl.train(0)
    with fl.update() as update:
        fl.close()
    assert update.sequence is None
    with pytest.raises(Closed, match="FederatedLearning object has been closed"), fl.update():
        pass
    assert threading.active_count() == threads


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    with FederatedLearning(_model()) as fl, fl.update() as update:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                update.num_examples = 1
                update.send()
            except Closed as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(7)
        os.close(write)
        with os.fdopen(read) as told:
            assert "before a fork" in told.read()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        update.num_examples = 1
    assert update.sequence is not None


def test_two_objects_in_one_process() -> None:
    one, other = _model(), _model(1)
    with FederatedLearning(one, settings=EXACT) as first, FederatedLearning(other, settings=EXACT) as second:
        with first.update() as here, second.update() as there:
            _add(one, 1.0)
            here.num_examples = there.num_examples = 1
        assert _same(first.get_global_model(), one)
        assert _same(second.get_global_model(), _model(1))


def test_an_object_that_nobody_holds_is_closed_after_its_block_and_not_in_it() -> None:
    threads = threading.active_count()
    model = _model()
    with FederatedLearning(model).update() as update:
        update.num_examples = 1
    assert update.sequence is not None
    del update
    gc.collect()
    assert threading.active_count() == threads


def test_the_block_is_no_part_of_the_trace_but_what_is_around_it_is() -> None:
    model = _model()
    with collector() as collected:
        settings: dict[str, Any] = {"tracing": collected.settings.model_dump()}
        with FederatedLearning(model, settings=settings) as fl:
            for update in fl.updates():
                assert not tracing()
                update.num_examples = 1
                if update.version == 1:
                    update.send()
                    break
        spans = {span.span_id: span for _, span in collected.spans}
    updates = [span for span in spans.values() if span.name == "client.update"]
    children = [span.name for span in spans.values() if span.parent_span_id in {each.span_id for each in updates}]
    assert len(updates) == 2
    assert sorted(children) == ["client.encode"] * 2 + ["client.publish"] * 2 + ["client.train"] * 2


@pytest.mark.kafka
async def test_two_clients_on_kafka(kafka: KafkaNode, federation: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "broker": {"bootstrap_servers": kafka.bootstrap_servers},
        "aggregation": {"buffer_size": 2, "deadline_seconds": 600.0},
        "stop": {"max_versions": 2},
    }
    settings = quick_settings(federation, **sections)

    def client(name: str, number: float) -> tuple[list[int], nn.Module]:
        model = _model()
        own = settings.changed(client={"id": name, "state_dir": tmp_path / name})
        with FederatedLearning(model, settings=own) as fl:
            versions = []
            for update in fl.updates():
                versions.append(update.version)
                _add(model, number)
                update.num_examples = 1
            return versions, model

    async with connect(settings.broker) as broker, running_federation(_model(), settings, broker):
        told = await asyncio.gather(asyncio.to_thread(client, "a", 1.0), asyncio.to_thread(client, "b", 3.0))
    expected = _model()
    _add(expected, 4.0)
    for versions, model in told:
        assert versions == [0, 1]
        assert _same(model, expected, atol=1e-5)
