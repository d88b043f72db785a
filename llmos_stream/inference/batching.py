"""Dynamic batching: requests for one version share a forward pass.

A batch goes when `max_batch` examples are there or the oldest has waited for `max_delay_ms`, whichever is first. While
every thread is busy more come together, so batches grow with the load. A request that the model fails on fails alone.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.errors import Busy, PredictionFailed
from llmos_stream.inference.held import Held
from llmos_stream.runtime import Offload, run_all

logger = logging.getLogger(__name__)

Outputs = list[Any]
"""For each example what the model gave, as numbers in lists."""


class _Request:
    __slots__ = ("answer", "due", "inputs")

    def __init__(self, inputs: Tensor, due: float, answer: "asyncio.Future[Outputs]") -> None:
        self.inputs = inputs
        self.due = due
        self.answer = answer


class Batcher:
    """Answers requests while `run` runs. `observe` is told the examples of each batch."""

    def __init__(
        self, settings: InferenceSettings, offload: Offload, observe: Callable[[int], object] = lambda _: None
    ) -> None:
        self._max_batch = settings.max_batch
        self._max_waiting = settings.max_waiting
        self._delay = settings.max_delay_ms / 1000
        self._offload = offload
        self._observe = observe
        self._lines: dict[Held, deque[_Request]] = {}
        self._changed = asyncio.Event()
        self._picking = asyncio.Lock()
        self._stopped = False
        self.waiting = 0
        """Examples that no batch has taken yet."""

    async def predict(self, held: Held, inputs: Tensor) -> Outputs:
        """What the version gives for inputs of shape (N, ...), N at most `max_batch`.

        Raises Busy when too many wait, PredictionFailed when the model gives no answer. A caller that is cancelled
        gives up its place.
        """
        if self._stopped or self.waiting + len(inputs) > self._max_waiting:
            raise Busy("stopping" if self._stopped else "too many examples are waiting; ask again in a moment")
        loop = asyncio.get_running_loop()
        request = _Request(inputs, loop.time() + self._delay, loop.create_future())
        self._lines.setdefault(held, deque()).append(request)
        self.waiting += len(inputs)
        self._changed.set()
        try:
            return await request.answer
        finally:
            self._leave(held, request)

    async def run(self) -> None:
        """Answer, until cancelled; what waits then is turned away."""
        try:
            await run_all(*(self._work() for _ in range(self._offload.workers)))
        finally:
            self._stopped = True
            for line in self._lines.values():
                _fail(line, Busy("stopping"))

    async def _work(self) -> None:
        while True:
            async with self._picking:
                held, batch = await self._next_batch()
            await self._answer(held, batch)

    async def _next_batch(self) -> tuple[Held, list[_Request]]:
        """Wait until one is due."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = [held for held, line in self._lines.items() if line[0].due <= now or self._is_full(line)]
            if due:
                return self._take(min(due, key=lambda held: self._lines[held][0].due))
            first = min((line[0].due for line in self._lines.values()), default=None)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(first):
                    await self._changed.wait()

    def _is_full(self, line: deque[_Request]) -> bool:
        return sum(len(request.inputs) for request in line) >= self._max_batch

    def _take(self, held: Held) -> tuple[Held, list[_Request]]:
        line, batch, size = self._lines[held], [], 0
        while line and size + len(line[0].inputs) <= self._max_batch:
            batch.append(line.popleft())
            size += len(batch[-1].inputs)
        if not line:
            del self._lines[held]
        self.waiting -= size
        return held, batch

    def _leave(self, held: Held, request: _Request) -> None:
        """Give up the place of a request that no batch has taken."""
        line = self._lines.get(held)
        if line is None or request not in line:
            return
        line.remove(request)
        self.waiting -= len(request.inputs)
        if not line:
            del self._lines[held]

    async def _answer(self, held: Held, batch: Sequence[_Request]) -> None:
        self._observe(sum(len(request.inputs) for request in batch))
        try:
            answers = await self._offload.run(_forward, held, [request.inputs for request in batch])
        except BaseException:
            _fail(batch, Busy("stopping"))
            raise
        for request, answer in zip(batch, answers, strict=True):
            if isinstance(answer, PredictionFailed):
                _fail([request], answer)
            elif not request.answer.done():
                request.answer.set_result(answer)


def _forward(held: Held, inputs: list[Tensor]) -> list[Outputs | PredictionFailed]:
    """One pass for all. Where that fails each gets its own: nobody's request spoils those of others."""
    try:
        return _together(held, inputs)
    except Exception as error:  # noqa: BLE001 (whatever a model raises is its requests' trouble alone)
        if len(inputs) > 1:
            return [answer for one in inputs for answer in _forward(held, [one])]
        # Not the error's text: it may hold what was asked.
        logger.error("version %d failed on a request: %s", held.version, type(error).__name__)
        return [error if isinstance(error, PredictionFailed) else PredictionFailed(_failed(held.version))]


def _together(held: Held, inputs: list[Tensor]) -> list[Outputs | PredictionFailed]:
    together = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
    with torch.inference_mode():
        outputs = held.model(together)
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(together) or outputs.is_complex():
        raise PredictionFailed(f"version {held.version} did not give a tensor with a row for each example")
    parts = torch.split(outputs, [len(one) for one in inputs])
    if bool(torch.isfinite(outputs).all()):
        return [part.tolist() for part in parts]
    unusable = PredictionFailed(f"version {held.version} gave numbers that are not finite; ask for another version")
    return [part.tolist() if bool(torch.isfinite(part).all()) else unusable for part in parts]


def _failed(version: int) -> str:
    return f"version {version} failed; ask for another version, or look at the log of this process"


def _fail(requests: Sequence[_Request] | deque[_Request], error: Exception) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
