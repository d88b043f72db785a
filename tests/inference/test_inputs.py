"""What a model takes, learnt from its task, and which numbers fit it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import ConfigError
from llmos_stream.inference.inputs import BadInput, InputSpec, input_spec, read_inputs
from llmos_stream.training import load_task


def test_the_form_is_that_of_the_tasks_test_data() -> None:
    assert input_spec(load_task(TaskSettings(entry="blobs"), ClientSettings())) == InputSpec((16,), torch.float32)


@pytest.mark.parametrize(
    "batches",
    [[], [({"ids": torch.zeros(1, 2)}, torch.zeros(1))], [((torch.zeros(1), torch.zeros(1)), torch.zeros(1))]],
)
def test_a_task_whose_inputs_are_not_one_tensor_is_refused(
    batches: list[tuple[Any, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(TaskSettings(entry="blobs"), ClientSettings())
    monkeypatch.setattr(task, "test_batches", lambda batch_size: batches)
    with pytest.raises(ConfigError, match=r"task\.entry"):
        input_spec(task)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        (InputSpec((), torch.float32), [1, 2.5]),
        (InputSpec((2,), torch.float64), [[1, 1e300]]),
        (InputSpec((2, 1), torch.int64), [[[1], [2**62]]]),
        (InputSpec((2,), torch.uint8), [[0, 255]]),
        (InputSpec((1,), torch.bool), [[True], [False]]),
        (InputSpec((0,), torch.float32), [[], []]),
    ],
)
def test_what_fits_comes_as_it_is(form: InputSpec, values: list[Any]) -> None:
    found = read_inputs(values, form, 4)
    assert found.dtype is form.dtype
    assert found.tolist() == values


@pytest.mark.parametrize(
    ("form", "values", "said"),
    [
        (InputSpec((1,), torch.int64), [[1.5]], "in whole numbers; got numbers of another kind"),
        (InputSpec((1,), torch.int64), [[2**70]], "no number"),
        (InputSpec((1,), torch.uint8), [[256]], "more than torch.uint8 holds"),
        (InputSpec((1,), torch.uint8), [[-1]], "more than torch.uint8 holds"),
        (InputSpec((1,), torch.bool), [[1]], "in true and false; got"),
        (InputSpec((1,), torch.float16), [[1e6]], "more than torch.float16 holds"),
        (InputSpec((), torch.float32), [[1.0]], "expected a list of finite numbers; got shape [1]"),
        (InputSpec((1,), torch.float32), [[[[[1.0]]]]], "got shape [1, 1, 1, 1]"),
    ],
)
def test_what_does_not_fit_is_refused(form: InputSpec, values: list[Any], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        read_inputs(values, form, 4)
