"""The service as a whole: versions come from a real aggregator through the log, and OpenAI's client is told of them."""

import logging
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from llmos_stream.broker import MemoryBroker
from llmos_stream.inference import run_inference
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.tasks import in_background
from llmos_stream.testing import until
from tests.inference.aids import SECONDS
from tests.inference.following import promote_in_log, settings_of, task_of
from tests.inference.generation.aids import LORA, port_of
from tests.replay.aids import running_from
from tests.roles.aids import publish_random


async def test_what_the_federation_publishes_and_promotes_answers(
    tiny: Path, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"model": str(tiny), "sequence": 16, "lora": LORA}
    settings = settings_of(federation, task={"entry": "llm", "options": options}, inference={"port": 0})
    task, initial = task_of(settings)
    broker, shutdown = MemoryBroker(), Shutdown()
    async with (
        running_from(broker, settings, initial) as running,
        Offload(2) as offload,
        in_background(run_inference(broker, settings, task, offload, shutdown)) as serving,
    ):

        async def comes(said: str) -> None:
            await until(lambda: said in caplog.text or serving.done())

        await comes("version 0 is ready")
        await comes("predicting on")
        url = f"http://127.0.0.1:{port_of(caplog)}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=SECONDS, max_retries=0) as client:

            async def answering() -> str:
                answer = await client.completions.create(model=federation, prompt="peace", max_tokens=2)
                return answer.model

            assert await answering() == f"{federation}:0"
            await publish_random(running, [1])
            await comes("version 1 is ready")
            assert await answering() == f"{federation}:1"
            await promote_in_log(running, 0)
            await comes("version 0 is promoted")
            assert await answering() == f"{federation}:0"
        shutdown.request()
        assert await serving == 0
