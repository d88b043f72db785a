"""A language model that is served on a port, without a broker: versions of it are made of their numbers."""

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import InferenceSettings
from llmos_stream.inference.generation.api import make_app
from llmos_stream.inference.generation.generator import Generator
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import LoadedModel, ModelPool
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.tasks import in_background
from llmos_stream.testing import until
from llmos_stream.training import load_task, shared_layout
from llmos_stream.training.llm.versions import VersionedModel
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.server import serve_http
from tests.inference.aids import SECONDS
from tests.training.llm.aids import llm_settings

NAME = "laws"
LORA = {"rank": 4, "alpha": 64.0, "targets": ["q_proj", "v_proj", "o_proj"]}


class Versions:
    """The base model, and versions of it that differ much from each other."""

    def __init__(self, folder: Path, **options: Any) -> None:
        settings = llm_settings(folder, **{"lora": LORA, **options})
        task = load_task(settings.task, settings.client)
        self.settings = settings
        self.layout: Layout = shared_layout(task.model(), task.share)
        self.model = VersionedModel(settings.task, task.model)

    def weights(self, version: int) -> Tensor:
        """The flat weights of a version."""
        generator = torch.Generator().manual_seed(version)
        return torch.randn(self.layout.numel, generator=generator) / 4

    def loaded(self, version: int) -> LoadedModel:
        held = self.model.hold(self.layout, self.weights(version))
        return LoadedModel(version, f"{version:064x}", 1000 * version, held)


class Served:
    """The service, and a client of it."""

    def __init__(
        self, url: str, app: FastAPI, pool: ModelPool, generator: Generator, registry: CollectorRegistry
    ) -> None:
        self.app = app
        self.pool = pool
        self.generator = generator
        self.registry = registry
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=SECONDS, max_retries=0)
        self.http = httpx.AsyncClient(base_url=url, timeout=SECONDS)


@contextlib.asynccontextmanager
async def generating(versions: Versions, caplog: pytest.LogCaptureFixture, **fields: Any) -> AsyncIterator[Served]:
    caplog.set_level(logging.INFO)
    settings = InferenceSettings(**fields)
    registry, shutdown = CollectorRegistry(), Shutdown()
    metrics, counts = InferenceMetrics(registry), GenerationMetrics(registry)
    pool = ModelPool(settings, lambda: 0.0)
    async with Offload(2) as offload:
        generator = Generator(settings, versions.model, offload, counts, metrics.batch)
        counts.watch(lambda: generator.waiting, lambda: generator.running)
        app = make_app(settings, NAME, versions.model, pool, generator, metrics, counts, offload)
        address = ListenAddress("inference", "127.0.0.1", 0)
        caplog.clear()
        serving = serve_http(app, address, "predicting", shutdown, SECONDS)
        async with in_background(generator.run()) as working, in_background(serving) as listening:
            await until(lambda: port_of(caplog) is not None or listening.done() or working.done())
            here = Served(f"http://127.0.0.1:{port_of(caplog)}", app, pool, generator, registry)
            async with here.client, here.http:
                yield here
            shutdown.request()
            await listening


def port_of(caplog: pytest.LogCaptureFixture) -> int | None:
    said = [record.getMessage() for record in caplog.records if "predicting on" in record.getMessage()]
    return int(said[-1].rpartition(":")[2]) if said else None


def greedy(versions: Versions, version: int, prompt: str, tokens: int) -> str:
    """What transformers itself makes of a prompt."""
    model = versions.model
    model.use(versions.loaded(version).model)
    ids = model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        for _ in range(tokens):  # without a cache, and so without anything that may be wrong in one
            last = model.model(input_ids=ids, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, last.argmax()[None, None]], dim=1)
            if int(ids[0, -1]) == model.tokenizer.eos_token_id:
                break
    made = ids[0, model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.shape[1] :]
    return str(model.tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False))
