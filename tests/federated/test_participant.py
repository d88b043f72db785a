"""`Participant`: weights in, weights out, without a model of torch."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier

from llmos_stream import Participant
from llmos_stream.broker import connect
from llmos_stream.codec import Layout
from llmos_stream.errors import Closed, TaskError
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import quick_settings, running_federation
from tests.conftest import KafkaNode

EXACT: dict[str, Any] = {"codec": {"name": "float32"}, "client": {"wait_seconds": 60.0}}


def _weights() -> dict[str, Any]:
    return {
        "coef": np.arange(6, dtype=np.float64).reshape(2, 3),
        "half": np.ones(3, np.float16),
        "tensor": torch.full((2,), 2.0, dtype=torch.bfloat16),
        "scalar": np.float32(7),
        "classes": np.array([3, 5]),
        "fitted": np.array(True),
    }


def test_arrays_come_back_in_the_dtype_and_kind_that_they_had() -> None:
    given = _weights()
    with Participant(given, settings=EXACT) as participant:
        weights = participant.receive()
        assert list(weights) == list(given)
        for name, value in given.items():
            found = weights[name]
            assert isinstance(found, torch.Tensor if name == "tensor" else np.ndarray | np.generic)
            assert (found.dtype, tuple(found.shape)) == (value.dtype, tuple(value.shape))
            assert (np.asarray(torch.as_tensor(found).float()) == np.asarray(torch.as_tensor(value).float())).all()
        assert weights["coef"] is not given["coef"]
        weights["coef"] += 1.0
        weights["tensor"] += 1.0
        update = participant.send(weights, num_examples=5, metrics={"loss": np.float32(0.5)})
        assert (update.version, update.rejected, update.finished) == (0, None, None)
        assert update.sequence is not None
        again = participant.receive()
    np.testing.assert_array_equal(again["coef"], given["coef"] + 1.0)
    assert torch.equal(torch.as_tensor(again["tensor"]), given["tensor"] + 1.0)


def test_whole_numbers_stay_here_as_they_were_given_last() -> None:
    with Participant(_weights(), settings=EXACT) as participant:
        weights = participant.receive()
        participant.send({**weights, "classes": np.array([8, 9, 10])}, num_examples=1)
        np.testing.assert_array_equal(participant.receive()["classes"], [8, 9, 10])
        names = {spec.name for spec in participant._arrays.layout.tensors}
    assert names == {"coef", "half", "tensor", "scalar"}


def test_arrays_in_any_memory_order_are_taken() -> None:
    odd = np.arange(6, dtype=">f8").reshape(2, 3)[:, ::-1]
    odd.setflags(write=False)
    with Participant({"w": odd}, settings=EXACT) as participant:
        weights = participant.receive()
        np.testing.assert_array_equal(weights["w"], odd)
        assert weights["w"].dtype == np.float64
        participant.send({"w": np.asfortranarray(odd + 1)}, num_examples=1)
        np.testing.assert_array_equal(participant.receive()["w"], odd + 1)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.array([{}, None], dtype=object), "of dtype object"),
        (np.ones(2, np.complex64), "of dtype complex64"),
        (np.array(["a"]), "of dtype <U1"),
        (np.ones(2, np.longdouble), "of dtype float128"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "is a MaskedArray"),
        (torch.ones(2, dtype=torch.complex64), "is complex"),
        (torch.ones(2, 2).to_sparse(), "is sparse"),
        ([1.0, 2.0], "is a list"),
        (1.5, "is a float"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(value: Any, why: str) -> None:
    with pytest.raises(TaskError, match=r"^weights\['w'\] ") as told:
        Participant({"w": value, "good": np.ones(2)})
    assert why in str(told.value)
    assert "\n" not in str(told.value)
    with Participant({"w": np.ones(2)}) as participant:
        participant.receive()
        with pytest.raises(TaskError, match=r"^weights\['w'\] "):
            participant.send({"w": value}, num_examples=1)


def test_a_mapping_with_something_to_share_is_wanted() -> None:
    for nothing in ({}, {"n": np.array(3)}):
        with pytest.raises(TaskError, match="no floating point array to share"):
            Participant(nothing)
    with pytest.raises(TaskError, match="list, not a mapping"):
        Participant([np.ones(2)])  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="buffers: mean"):
        Participant({"w": np.ones(2)}, buffers=["mean"])


def test_other_weights_than_at_the_start_are_refused_and_can_be_set_right() -> None:
    with Participant({"w": np.ones(2)}, settings=EXACT) as participant:
        with pytest.raises(TaskError, match=r"call receive\(\) first"):
            participant.send({"w": np.ones(2)}, num_examples=1)
        participant.receive()
        for wrong, why in (
            ({}, "lack 'w'"),
            ({"w": np.ones(3)}, r"is float64 \[3\], and was float64 \[2\]"),
            ({"w": np.ones(2, int)}, "and was float64"),
            ({"w": np.ones(2), "v": np.ones(2)}, "hold 'v'"),
        ):
            with pytest.raises(TaskError, match=why):
                participant.send(wrong, num_examples=1)
        assert participant.send({"w": np.full(2, 4.0, np.float32)}, num_examples=1).sequence is not None
        with pytest.raises(TaskError, match=r"call receive\(\) first"):
            participant.send({"w": np.ones(2)}, num_examples=1)
        np.testing.assert_array_equal(participant.receive()["w"], [4, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_in_one_line(bad: float) -> None:
    with Participant({"w": np.ones((2, 2)), "b": np.ones(2)}, settings=EXACT) as participant:
        weights = participant.receive()
        weights["b"][1] = bad
        with pytest.raises(TaskError, match=f"^training made b not finite: 1 became {bad:g}") as told:
            participant.send(weights, num_examples=1)
        assert "\n" not in str(told.value)
        weights["b"][1] = 2.0
        assert participant.send(weights, num_examples=1).sequence is not None


def test_buffers_are_averaged_as_values() -> None:
    weights = {"w": np.ones(2, np.float32), "mean": np.full(2, 3.0, np.float32)}
    settings = EXACT | {"server_optimizer": {"name": "sgd", "lr": 0.5}}
    with Participant(weights, buffers=["mean"], settings=settings) as participant:
        participant.receive()
        participant.send({"w": np.full(2, 3.0), "mean": np.full(2, 9.0)}, num_examples=1)
        newest = participant.receive()
    np.testing.assert_array_equal(newest["w"], [2, 2])  # half the way
    np.testing.assert_array_equal(newest["mean"], [9, 9])  # whatever the learning rate is


def test_what_is_received_again_begins_anew() -> None:
    with Participant({"w": np.zeros(2)}, settings=EXACT) as participant:
        participant.receive()["w"] += 5.0
        weights = participant.receive()
        np.testing.assert_array_equal(weights["w"], [0, 0])
        participant.send(weights, num_examples=1)


def test_the_end_of_the_run_is_told() -> None:
    with Participant({"w": np.zeros(2)}, settings=EXACT | {"stop": {"max_versions": 2}}) as participant:
        rounds = 0
        while not participant.finished:
            weights = participant.receive()
            update = participant.send({"w": weights["w"] + 1.0}, num_examples=1)
            rounds += 1
        assert rounds in (2, 3)  # the end may be heard while it waits for the next version
        assert str(participant.finished).startswith("max_versions")
        np.testing.assert_array_equal(participant.receive()["w"], [2, 2])
        update = participant.send({"w": np.ones(2)}, num_examples=1)
        assert (update.sequence, update.finished) == (None, participant.finished)


async def test_in_an_event_loop() -> None:
    async with await asyncio.to_thread(Participant, {"w": np.zeros(2)}, settings=EXACT) as participant:
        for number in range(3):
            weights = await participant.areceive()
            np.testing.assert_array_equal(weights["w"], [number, number])
            update = await participant.asend({"w": weights["w"] + 1.0}, num_examples=1)
            assert update.version == number


def test_a_closed_one_refuses() -> None:
    threads = threading.active_count()
    participant = Participant({"w": np.zeros(2)})
    participant.receive()
    participant.close()
    with pytest.raises(Closed, match="this Participant object has been closed"):
        participant.receive()
    assert threading.active_count() == threads


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    with Participant({"w": np.zeros(2)}) as participant:
        participant.receive()
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                participant.send({"w": np.ones(2)}, num_examples=1)
            except Closed as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(7)
        os.close(write)
        with os.fdopen(read) as told:
            assert told.read().startswith("this Participant object is of the process before a fork")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert participant.send({"w": np.ones(2)}, num_examples=1).sequence is not None


def _examples(seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(256, 5))
    return inputs, (inputs @ [1.0, -2.0, 0.5, 0.0, 3.0] > 0).astype(int)


def _classifier() -> SGDClassifier:
    classifier = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=0)
    inputs, _ = _examples(0)
    return classifier.partial_fit(inputs[:2], [0, 1], classes=[0, 1])


def _fit(participant: Participant, seed: int) -> float:
    """Fit until the run ends; the accuracy of the last version."""
    classifier = _classifier()
    inputs, targets = _examples(seed)
    while not participant.finished:
        weights = participant.receive()
        classifier.coef_, classifier.intercept_ = weights["coef"], weights["intercept"]
        classifier.partial_fit(inputs, targets)
        weights = {"coef": classifier.coef_, "intercept": classifier.intercept_}
        participant.send(weights, num_examples=len(targets), metrics={"accuracy": classifier.score(inputs, targets)})
    last = participant.receive()
    classifier.coef_, classifier.intercept_ = last["coef"], last["intercept"]
    return float(classifier.score(*_examples(99)))


def _start() -> dict[str, Any]:
    return {"coef": np.zeros((1, 5)), "intercept": np.zeros(1)}


def test_scikit_learn_alone() -> None:
    with Participant(_start(), settings={"stop": {"max_versions": 5}}) as participant:
        assert _fit(participant, 1) > 0.95


@pytest.mark.kafka
async def test_two_sites_of_scikit_learn_on_kafka(kafka: KafkaNode, federation: str, tmp_path: Path) -> None:
    settings = quick_settings(
        federation,
        broker={"bootstrap_servers": kafka.bootstrap_servers},
        aggregation={"buffer_size": 2, "deadline_seconds": 600.0},
        stop={"max_versions": 5},
    )
    layout = Layout.of({name: torch.from_numpy(array) for name, array in _start().items()})

    def site(number: int) -> float:
        own = settings.changed(client={"id": f"site-{number}", "state_dir": tmp_path / str(number)})
        with Participant(_start(), settings=own) as participant:
            return _fit(participant, number)

    async with (
        connect(settings.broker) as broker,
        running_federation(Initial(layout, torch.zeros(layout.numel)), settings, broker),
    ):
        scores = await asyncio.gather(*(asyncio.to_thread(site, number) for number in (1, 2)))
    assert scores[0] == scores[1] > 0.95
