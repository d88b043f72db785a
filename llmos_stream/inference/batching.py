"""Dynamic batching: requests for one version share a forward pass.

A batch starts when `max_batch` examples are there or the oldest has waited for `max_delay_ms`, whichever is first.
While all threads are busy more examples gather, so that batches grow with the load. A request that the model fails on
fails alone.
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
from llmos_stream.errors import LlmosError
from llmos_stream.inference.model_pool import LoadedModel
from llmos_stream.runtime import Offload, run_all

logger = logging.getLogger(__name__)

Outputs = list[Any]
"""For each example the model's output, as numbers in lists."""


class Busy(LlmosError):
    """Too many examples wait; ask again in a moment."""

    retriable = True


class PredictionFailed(LlmosError):
    """The model did not give an answer; the message names the version."""


class _Request:
    __slots__ = ("answer", "due", "inputs")

    def __init__(self, inputs: Tensor, due: float, answer: "asyncio.Future[Outputs]") -> None:
        self.inputs = inputs
        self.due = due
        self.answer = answer


class Batcher:
    """Answers requests while `run` runs. `observe` gets the number of examples of each batch."""

    def __init__(
        self, settings: InferenceSettings, offload: Offload, observe: Callable[[int], object] = lambda _: None
    ) -> None:
        self._max_batch = settings.max_batch
        self._max_waiting = settings.max_waiting
        self._delay = settings.max_delay_ms / 1000
        self._offload = offload
        self._observe = observe
        self._queues: dict[LoadedModel, deque[_Request]] = {}
        self._changed = asyncio.Event()
        self._picking = asyncio.Lock()
        self._stopped = False
        self.waiting = 0
        """Examples that no batch has taken yet."""

    async def predict(self, model: LoadedModel, inputs: Tensor) -> Outputs:
        """Predict for inputs of shape (N, ...), N at most `max_batch`. A caller that is cancelled leaves the queue.

        Raises:
            Busy: Too many examples wait.
            PredictionFailed: The model gave no answer.
        """
        if self._stopped or self.waiting + len(inputs) > self._max_waiting:
            raise Busy("stopping" if self._stopped else "too many examples are waiting; ask again in a moment")
        loop = asyncio.get_running_loop()
        request = _Request(inputs, loop.time() + self._delay, loop.create_future())
        self._queues.setdefault(model, deque()).append(request)
        self.waiting += len(inputs)
        self._changed.set()
        try:
            return await request.answer
        finally:
            self._leave(model, request)

    async def run(self) -> None:
        """Answer until cancelled, and refuse then what waits."""
        try:
            await run_all(*(self._work() for _ in range(self._offload.workers)))
        finally:
            self._stopped = True
            for queue in self._queues.values():
                _fail(queue, Busy("stopping"))

    async def _work(self) -> None:
        while True:
            async with self._picking:
                model, batch = await self._next_batch()
            await self._answer(model, batch)

    async def _next_batch(self) -> tuple[LoadedModel, list[_Request]]:
        """Wait until a batch is due."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = [model for model, queue in self._queues.items() if queue[0].due <= now or self._is_full(queue)]
            if due:
                return self._take(min(due, key=lambda model: self._queues[model][0].due))
            first = min((queue[0].due for queue in self._queues.values()), default=None)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(first):
                    await self._changed.wait()

    def _is_full(self, queue: deque[_Request]) -> bool:
        return sum(len(request.inputs) for request in queue) >= self._max_batch

    def _take(self, model: LoadedModel) -> tuple[LoadedModel, list[_Request]]:
        queue, batch, size = self._queues[model], [], 0
        while queue and size + len(queue[0].inputs) <= self._max_batch:
            batch.append(queue.popleft())
            size += len(batch[-1].inputs)
        if not queue:
            del self._queues[model]
        self.waiting -= size
        return model, batch

    def _leave(self, model: LoadedModel, request: _Request) -> None:
        """Take a request that is in no batch yet out of the queue."""
        queue = self._queues.get(model)
        if queue is None or request not in queue:
            return
        queue.remove(request)
        self.waiting -= len(request.inputs)
        if not queue:
            del self._queues[model]

    async def _answer(self, model: LoadedModel, batch: Sequence[_Request]) -> None:
        self._observe(sum(len(request.inputs) for request in batch))
        try:
            answers = await self._offload.run(_forward, model, [request.inputs for request in batch])
        except BaseException:
            _fail(batch, Busy("stopping"))
            raise
        for request, answer in zip(batch, answers, strict=True):
            if isinstance(answer, PredictionFailed):
                _fail([request], answer)
            elif not request.answer.done():
                request.answer.set_result(answer)


def _forward(model: LoadedModel, inputs: list[Tensor]) -> list[Outputs | PredictionFailed]:
    """Run one pass for all requests. If it fails run one for each, so that no request spoils another's answer."""
    try:
        return _together(model, inputs)
    except Exception as error:  # noqa: BLE001 (whatever a model raises concerns its requests only)
        if len(inputs) > 1:
            return [answer for one in inputs for answer in _forward(model, [one])]
        # Not the error's text: it may hold the request's data.
        logger.error("version %d failed on a request: %s", model.version, type(error).__name__)
        said = f"version {model.version} failed; ask for another version, or look at the log of this process"
        return [error if isinstance(error, PredictionFailed) else PredictionFailed(said)]


def _together(model: LoadedModel, inputs: list[Tensor]) -> list[Outputs | PredictionFailed]:
    together = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
    with torch.inference_mode():
        outputs = model.model(together)
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(together) or outputs.is_complex():
        raise PredictionFailed(f"version {model.version} did not give a tensor with a row for each example")
    parts = torch.split(outputs, [len(one) for one in inputs])
    if bool(torch.isfinite(outputs).all()):
        return [part.tolist() for part in parts]
    unusable = PredictionFailed(f"version {model.version} gave numbers that are not finite; ask for another version")
    return [part.tolist() if bool(torch.isfinite(part).all()) else unusable for part in parts]


def _fail(requests: Sequence[_Request] | deque[_Request], error: Exception) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
