"""Models that show which version they are, and the service put together without a broker."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.api import make_app
from llmos_stream.inference.batching import Batcher
from llmos_stream.inference.inputs import InputSpec
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import LoadedModel, ModelPool
from llmos_stream.runtime import Offload
from llmos_stream.runtime.tasks import in_background

SPEC = InputSpec((3,), torch.float32)
SECONDS = 60.0


class Times(nn.Module):
    """Multiplies by its version; `before` is called in the thread that works, with the batch."""

    def __init__(self, version: int, before: Callable[[Tensor], object] = lambda _: None) -> None:
        super().__init__()
        self._version = version
        self._before = before

    def forward(self, inputs: Tensor) -> Tensor:
        self._before(inputs)
        return inputs * self._version


def loaded(version: int, before: Callable[[Tensor], object] = lambda _: None) -> LoadedModel:
    return LoadedModel(version, f"{version:064x}", 1000 + version, Times(version, before).eval())


class Served:
    """The API and what is behind it."""

    def __init__(self, app: FastAPI, pool: ModelPool, batcher: Batcher, registry: CollectorRegistry) -> None:
        self.app = app
        self.pool = pool
        self.batcher = batcher
        self.registry = registry
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")


@contextlib.asynccontextmanager
async def served(draw: Callable[[], float] = lambda: 0.0, **fields: Any) -> AsyncIterator[Served]:
    settings = InferenceSettings(**{"max_delay_ms": 0.0, **fields})
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry)
    pool = ModelPool(settings, draw)
    async with Offload(2) as offload:
        batcher = Batcher(settings, offload, metrics.batch)
        here = Served(make_app(settings, SPEC, pool, batcher, metrics, offload), pool, batcher, registry)
        async with here.http, in_background(batcher.run()):
            yield here
