"""Dynamic batching: what shares a pass, what is turned away, and that trouble stays where it is."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.batching import Batcher, Busy, Outputs, PredictionFailed
from llmos_stream.inference.model_pool import LoadedModel
from llmos_stream.runtime import Offload
from llmos_stream.runtime.tasks import in_background
from llmos_stream.testing import until
from tests.inference.aids import SECONDS, loaded


class _Gate:
    """Holds batches up in their thread until it is opened, and notes their sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()

    def __call__(self, inputs: Tensor) -> None:
        self.sizes.append(len(inputs))
        assert self.open.wait(SECONDS)


@contextlib.asynccontextmanager
async def _batching(workers: int = 1, **fields: Any) -> AsyncIterator[Batcher]:
    async with Offload(workers) as offload:
        batcher = Batcher(InferenceSettings().model_copy(update=fields), offload)
        async with in_background(batcher.run()):
            yield batcher


def _ask(batcher: Batcher, version: LoadedModel, *values: float) -> "asyncio.Task[Outputs]":
    return asyncio.create_task(batcher.predict(version, torch.tensor([[value] for value in values])))


async def test_what_comes_while_a_pass_runs_shares_the_next_and_everyone_gets_their_own() -> None:
    gate = _Gate()
    version = loaded(3, gate)
    async with _batching(max_batch=8, max_delay_ms=0.0) as batcher:
        first = _ask(batcher, version, 0.0)
        await until(lambda: gate.sizes == [1])
        others = [_ask(batcher, version, float(number), number + 0.5) for number in range(6)]
        await until(lambda: batcher.waiting == 12)
        gate.open.set()
        assert await first == [[0.0]]
        answers = await asyncio.gather(*others)
    assert answers == [[[3.0 * number], [3.0 * number + 1.5]] for number in range(6)]
    assert gate.sizes == [1, 8, 4]


async def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    async with asyncio.timeout(SECONDS), _batching(max_batch=4, max_delay_ms=600_000.0) as batcher:
        version = loaded(2)
        asked = [_ask(batcher, version, 1.0) for _ in range(4)]
        assert await asyncio.gather(*asked) == [[[2.0]]] * 4


async def test_a_lone_request_goes_after_the_delay() -> None:
    async with asyncio.timeout(SECONDS), _batching(max_batch=4, max_delay_ms=5.0) as batcher:
        assert await _ask(batcher, loaded(2), 1.0) == [[2.0]]


async def test_versions_never_share_a_pass() -> None:
    gate = _Gate()
    async with _batching(max_batch=8, max_delay_ms=0.0) as batcher:
        one, two = loaded(1, gate), loaded(2, gate)
        first = _ask(batcher, one, 5.0)
        await until(lambda: gate.sizes == [1])
        others = [_ask(batcher, version, 5.0) for version in (one, two, one, two)]
        await until(lambda: batcher.waiting == 4)
        gate.open.set()
        assert await asyncio.gather(first, *others) == [[[5.0]], [[5.0]], [[10.0]], [[5.0]], [[10.0]]]
    assert sorted(gate.sizes) == [1, 2, 2]


async def test_past_the_limit_requests_are_turned_away_and_places_come_back() -> None:
    gate = _Gate()
    version = loaded(1, gate)
    async with _batching(max_batch=2, max_waiting=3, max_delay_ms=0.0) as batcher:
        first = _ask(batcher, version, 0.0)
        await until(lambda: gate.sizes == [1])
        waiting = [_ask(batcher, version, 1.0) for _ in range(3)]
        await until(lambda: batcher.waiting == 3)
        with pytest.raises(Busy, match="ask again"):
            await _ask(batcher, version, 2.0)
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert batcher.waiting == 0
        assert await _ask(batcher, version, 2.0) == [[2.0]]


async def test_a_request_that_the_model_fails_on_spoils_none_that_shared_its_pass() -> None:
    gate = _Gate()

    def picky(inputs: Tensor) -> None:
        gate(inputs)
        if bool((inputs < 0).any()):
            raise RuntimeError("a secret value")

    async with _batching(max_batch=2, max_delay_ms=0.0) as batcher:
        version = loaded(2, picky)
        first = _ask(batcher, version, 1.0)
        await until(lambda: gate.sizes == [1])
        others = [_ask(batcher, version, value) for value in (-1.0, 2.0, 3.0, 4.0)]
        await until(lambda: batcher.waiting == 4)
        gate.open.set()
        first_done, failed, *good = await asyncio.gather(first, *others, return_exceptions=True)
    assert [first_done, *good] == [[[2.0]], [[4.0]], [[6.0]], [[8.0]]]
    assert isinstance(failed, PredictionFailed)
    assert "version 2" in str(failed)
    assert "secret" not in str(failed)
    assert gate.sizes == [1, 2, 1, 1, 2]


async def test_numbers_that_are_not_finite_are_no_answer_to_who_asked_for_them() -> None:
    async with asyncio.timeout(SECONDS), _batching(max_batch=4, max_delay_ms=600_000.0) as batcher:
        version = loaded(2)
        bad, good = _ask(batcher, version, 3e38, 1.0), _ask(batcher, version, 1.0, 2.0)
        with pytest.raises(PredictionFailed, match="not finite"):
            await bad
        assert await good == [[2.0], [4.0]]


async def test_who_has_gone_is_not_worked_for() -> None:
    gate = _Gate()
    version = loaded(1, gate)
    async with _batching(max_batch=8, max_delay_ms=0.0) as batcher:
        first = _ask(batcher, version, 0.0)
        await until(lambda: gate.sizes == [1])
        others = [_ask(batcher, version, 1.0) for _ in range(4)]
        await until(lambda: batcher.waiting == 4)
        for gone in others[:3]:
            gone.cancel()
        await asyncio.wait(others[:3])
        assert batcher.waiting == 1
        gate.open.set()
        assert [await first, await others[3]] == [[[0.0]], [[1.0]]]
    assert gate.sizes == [1, 1]


async def test_who_goes_while_the_pass_runs_spoils_nothing() -> None:
    gate = _Gate()
    version = loaded(1, gate)
    async with _batching(max_batch=2, max_delay_ms=10_000.0) as batcher:
        asked = [_ask(batcher, version, 1.0) for _ in range(2)]
        await until(lambda: gate.sizes == [2])
        asked[0].cancel()
        gate.open.set()
        assert await asked[1] == [[1.0]]


async def test_what_waits_when_it_stops_is_turned_away() -> None:
    async with _batching(max_batch=8, max_delay_ms=10_000.0) as batcher:
        asked = _ask(batcher, loaded(1), 1.0)
        await until(lambda: batcher.waiting == 1)
    with pytest.raises(Busy, match="stopping"):
        await asked
    with pytest.raises(Busy, match="stopping"):
        await batcher.predict(loaded(1), torch.ones(1, 1))
