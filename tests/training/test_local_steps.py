"""How many steps a client does for an update."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from llmos_stream import FederatedLearning
from llmos_stream.config import load
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.training.local_steps import LocalSteps

Batch = tuple[Tensor, Tensor]


def _batches(count: int = 5) -> list[Batch]:
    return [(torch.full((2, 2), float(number)), torch.zeros(2, dtype=torch.long)) for number in range(count)]


def _numbers(steps: LocalSteps, fastest: float = 0.0) -> list[float]:
    """Which batches the next update is trained on."""
    return [float(x[0, 0]) for batches in steps.passes(fastest) for x, _ in batches]  # type: ignore[index]


def test_whole_epochs_unless_something_is_set() -> None:
    steps = LocalSteps(_batches(3), 2, None)
    assert _numbers(steps) == [0, 1, 2, 0, 1, 2]
    assert steps.done(6, 1.0) == {"local_steps": 6.0}
    assert [steps.weight(seen) for seen in (10, 4)] == [10, 4]


def test_a_number_of_steps_goes_on_where_the_last_update_stopped() -> None:
    steps = LocalSteps(_batches(5), 1, 3)
    assert [_numbers(steps) for _ in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert steps.done(3, 1.0) == {"local_steps": 3.0}


def test_after_a_failure_the_data_begin_anew() -> None:
    class Breaks:
        times = 0

        def __iter__(self) -> Iterator[Batch]:
            self.times += 1
            yield from _batches(2)
            if self.times == 1:
                raise OSError("the disk is gone")

    steps = LocalSteps(Breaks(), 1, 3)
    with pytest.raises(OSError, match="disk"):
        _numbers(steps)
    steps.broke_off()
    assert _numbers(steps) == [0, 1, 0]


def test_no_batch_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(TaskError, match="no batch"):
        _numbers(LocalSteps([], 1, 3))


@pytest.mark.parametrize(
    ("fastest", "wanted"),
    [(0.0, 5), (2.0, 5), (4.0, 2), (20.0, 1), (1000.0, 1), (1.0, 5)],
    ids=["unknown", "it is the fastest", "half as fast", "a tenth", "a trifle", "faster than was heard"],
)
def test_steps_follow_the_speed(fastest: float, wanted: int) -> None:
    """max(1, floor(v / v_max * H)), with v = 2 steps a second and H = 5."""
    steps = LocalSteps(_batches(5), 1, "auto")
    assert _numbers(steps, fastest) == [0, 1, 2, 3, 4]  # the first update tells how fast it is
    assert steps.done(5, 2.5) == {"local_steps": 5.0, "steps_per_second": 2.0}
    assert _numbers(steps, fastest) == [0, 1, 2, 3, 4][:wanted]
    assert [steps.weight(seen) for seen in (10, 4)] == [10, 10]


def test_the_speed_is_that_of_the_last_update() -> None:
    steps = LocalSteps(_batches(4), 2, "auto")
    assert len(_numbers(steps, 8.0)) == 8
    steps.done(8, 1.0)
    assert len(_numbers(steps, 8.0)) == 8
    steps.done(8, 4.0)  # something else runs on this machine now
    assert len(_numbers(steps, 8.0)) == 2


def test_train_does_the_steps_that_are_set() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, _batches(5), optimizer, settings={"client": {"local_steps": 3}}) as fl:
        told = [fl.train(epoch) for epoch in range(2)]
    assert [(answer["num_examples"], answer["local_steps"]) for answer in told] == [(6, 3.0), (6, 3.0)]


def test_the_setting_is_a_number_or_auto() -> None:
    assert load({"client": {"local_steps": "7"}}).client.local_steps == 7
    assert load({"client": {"local_steps": "auto"}}).client.local_steps == "auto"
    for wrong in ("0", "fast"):
        with pytest.raises(ConfigError, match=r"client\.local_steps"):
            load({"client": {"local_steps": wrong}})
