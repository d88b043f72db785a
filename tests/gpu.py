"""Tests that run on a GPU too, where there is one. `make gpu` runs these alone."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

_MARKS = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))

Test = TypeVar("Test", bound=Callable[..., object])

DEVICES = ["cpu", pytest.param("cuda", marks=_MARKS)]


def needs_gpu(test: Test) -> Test:
    """Mark a test that makes no sense without one."""
    for mark in _MARKS:
        test = mark(test)
    return test
