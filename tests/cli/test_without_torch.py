"""The commands that compute nothing go without torch, which takes seconds to import."""

import subprocess
import sys

import pytest

_SCRIPT = """
import contextlib, sys

sys.modules["torch"] = None  # whoever imports it fails

import llmos_stream.broker
from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.config import TopicSettings
from llmos_stream.errors import LlmosError

command = sys.argv[1]


class Broker(MemoryBroker):
    def reader(self, *given, **named):
        if command == "monitor":
            raise LlmosError("all is imported by now")
        return super().reader(*given, **named)


@contextlib.asynccontextmanager
async def connect(settings):
    async with Broker() as broker:
        await broker.create_topics(Topics("digits").specs(TopicSettings()))
        yield broker


llmos_stream.broker.connect = connect

from llmos_stream.cli.main import main

sys.exit(main([command, "--federation.name", "digits"]))
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [("pause", "paused: clients rest"), ("resume", "goes on"), ("monitor", "all is imported by now")],
)
def test_it_goes_without_torch(command: str, said: str) -> None:
    command_line = [sys.executable, "-c", _SCRIPT, command]
    done = subprocess.run(command_line, check=False, capture_output=True, text=True, timeout=120)
    assert said in done.stdout + done.stderr, done
