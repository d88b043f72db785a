"""Every command and every piece of code on the pages runs as it stands there.

The commands of a page meet a federation that has ended on a real Kafka, with 20 versions; those of a page that starts a
Kafka meet that one.
"""

import asyncio
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmos_stream.broker import connect
from llmos_stream.testing import quick_settings, running_federation
from llmos_stream.training import load_task
from tests.conftest import KafkaNode, need_a_local_kafka
from tests.docs.pages import PAGES, Block, run_here
from tests.docs.story import tell

_KAFKA = "llmos-stream broker"
_RUN_ELSEWHERE = {"scenarios"}  # by tests/scenarios/test_command.py


def _with(language: str) -> list[Path]:
    return [
        page for page in PAGES if any(block.language == language and (block.title is None) for block in run_here(page))
    ]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("page", _with("python"), ids=lambda page: page.stem)
def test_its_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    names = _a_loop_of_ones_own()
    try:
        for block in run_here(page):
            if block.title is not None:
                (tmp_path / block.title).write_text(block.text)
            elif block.language == "python":
                _execute(block, names)
    finally:
        if "fl" in names:
            names["fl"].close()
        for name in set(sys.modules) - known:
            if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
                del sys.modules[name]


def _execute(block: Block, names: dict[str, Any]) -> None:
    """With the page's own line numbers, so that a traceback leads there."""
    exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)  # noqa: S102


def _a_loop_of_ones_own() -> dict[str, Any]:
    """What a reader has already."""
    model = nn.Linear(4, 2)
    batch = torch.rand(8, 4), torch.randint(0, 2, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"__name__": "page", "model": model, "data_loader": [batch], "optimizer": optimizer, "num_epochs": 2}


@pytest.fixture(scope="module")
def ended(shared_kafka: KafkaNode) -> Iterator[dict[str, str]]:
    """The variables of a federation that has ended, for all pages."""
    name = f"docs-{uuid.uuid4().hex[:8]}"
    asyncio.run(_twenty_versions(shared_kafka, name))
    yield {"LLMOS_BROKER__BOOTSTRAP_SERVERS": shared_kafka.bootstrap_servers, "LLMOS_FEDERATION__NAME": name}
    asyncio.run(_delete(shared_kafka, name))


async def _twenty_versions(kafka: KafkaNode, name: str) -> None:
    """Two clients of the digits, each of which sends ten updates, in turn."""
    settings = quick_settings(name, stop={"max_versions": 20}, versions={"full_every": 4})
    model = load_task(settings.task, settings.client).model()
    async with connect(kafka.settings()) as broker, running_federation(model, settings, broker) as running:
        for number in range(20):
            delta = torch.randn(running.initial.layout.numel, generator=torch.Generator().manual_seed(number)) / 1000
            await running.publish(delta, f"client-{number % 2}", base_version=number)
            await running.version(number + 1)
        await running.task


async def _delete(kafka: KafkaNode, name: str) -> None:
    async with connect(kafka.settings()) as broker:
        await broker.delete_topics([topic.name for topic in await broker.list_topics(name)])


@pytest.mark.kafka
@pytest.mark.full
@pytest.mark.xdist_group("docs")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in _with("bash") if page.stem not in _RUN_ELSEWHERE], ids=lambda page: page.stem
)
def test_its_commands_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    blocks = run_here(page)
    if any(_KAFKA in block.text for block in blocks):  # it has one of its own, and begins with nothing
        need_a_local_kafka()
        variables: dict[str, str] = {}
    else:
        variables = request.getfixturevalue("ended")
    tell(blocks, tmp_path, variables, free_port)
