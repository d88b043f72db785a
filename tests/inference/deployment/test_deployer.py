"""What operators promote comes to every server, whatever happens to it meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.inference.deployment import run_deployer
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.tasks import in_background
from llmos_stream.testing import RunningFederation, until
from tests.inference.deployment.standins import StandIn, StandInLorax, StandInVllm, listening
from tests.inference.following import promote_in_log, settings_of, task_of
from tests.inference.generation.aids import LORA
from tests.registry.aids import AT, store_of, version_of
from tests.replay.aids import running_from
from tests.roles.aids import publish_random


class _Deploying:
    def __init__(self, settings: Settings, running: RunningFederation, standins: list[StandIn]) -> None:
        self.settings = settings
        self.running = running
        self.standins = standins

    @asynccontextmanager
    async def deployer(self) -> AsyncIterator[Callable[[Callable[[], object]], Any]]:
        """A deployer until the block ends; gives what waits until something is so."""
        shutdown = Shutdown()
        async with (
            Offload(2) as offload,
            in_background(run_deployer(self.running.broker, self.settings, offload, shutdown)) as work,
        ):

            async def wait(so: Callable[[], object]) -> None:
                await until(lambda: bool(so()) or work.done())
                assert so(), work

            yield wait
            shutdown.request()
            await work


@asynccontextmanager
async def _deploying(
    broker: Broker, federation: str, tiny: Path, folder: Path, *standins: StandIn, **sections: Any
) -> AsyncIterator[_Deploying]:
    with ExitStack() as stack:
        urls = ",".join(stack.enter_context(listening(standin)).url for standin in standins)
        deploy = {"urls": urls, "folder": str(folder / "adapters"), "check_seconds": 0.1}
        options = {"model": str(tiny), "sequence": 16, "lora": LORA}
        task = {"entry": "llm", "options": options}
        given = {"task": task, **sections, "deploy": {**deploy, **sections.get("deploy", {})}}
        settings = settings_of(federation, **given)
        _, initial = task_of(settings)
        async with running_from(broker, settings, initial) as running:
            yield _Deploying(settings, running, list(standins))


async def test_what_is_promoted_is_loaded_and_what_nobody_goes_back_to_is_let_go(
    broker: Broker, federation: str, tiny: Path, tmp_path: Path
) -> None:
    server = StandInVllm()
    async with _deploying(broker, federation, tiny, tmp_path, server) as here:
        await publish_random(here.running, [1, 2])
        async with here.deployer() as wait:
            await _promote(here, 1)
            await wait(lambda: server.names() == {f"{federation}:1"})
            await _promote(here, 2, 1)
            await wait(lambda: server.names() == {f"{federation}:1", f"{federation}:2"})
            await _promote(here, 0, 1, 2)
            await wait(lambda: server.names() == {f"{federation}:0", f"{federation}:2"})
        one, two = (server.weights[path] for name, path in _loads(server) if name.endswith((":1", ":2")))
        assert one.keys() == two.keys()
        assert any(not torch.equal(one[name], two[name]) for name in one)
        async with here.deployer() as wait:  # again: nothing is left to be done
            seen = len(server.calls)
            await publish_random(here.running, [3])
            await _promote(here, 3, 0)
            await wait(lambda: f"{federation}:3" in server.names())
        assert [name for name, _ in _loads(server)[3:]] == [f"{federation}:3"]
        assert seen == len(_loads(server)[:3]) + 1  # and one was unloaded


async def test_a_server_that_has_forgotten_all_gets_it_again_and_the_log_says_so(
    federation: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = StandInVllm()
    async with _deploying(MemoryBroker(), federation, tiny, tmp_path, server) as here, here.deployer() as wait:
        await _promote(here, 0)
        await wait(server.names)
        server.restart()
        await wait(server.names)
    assert len(_loads(server)) == 2
    assert caplog.text.count(f"{server.url} has loaded {federation}:0 from {tmp_path}") == 2


async def test_one_that_refuses_is_asked_again_and_holds_up_no_other(
    federation: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bad, good = StandInVllm(), StandInVllm()
    bad.failures = [500] * 2
    bad.loaded = {f"{federation}:7": "/old"}
    async with _deploying(MemoryBroker(), federation, tiny, tmp_path, bad, good) as here:
        async with here.deployer() as wait:
            await _promote(here, 0)
            await wait(lambda: good.names() == bad.names() == {f"{federation}:0"})
        said = [record.getMessage() for record in caplog.records]
        assert sum("answers 500: out of memory; asking again in" in line for line in said) == 2
        assert sum(f"version 0 is deployed at {good.url}: ask for {federation}:0" in line for line in said) == 1
        refused = next(place for place, line in enumerate(said) if "answers 500" in line)
        assert f"{federation}:7" not in "".join(said[:refused])


async def test_one_that_hangs_holds_up_no_other(federation: str, tiny: Path, tmp_path: Path) -> None:
    hanging, good = StandInVllm(), StandInVllm()
    hanging.slow.set()
    async with (
        _deploying(MemoryBroker(), federation, tiny, tmp_path, hanging, good) as here,
        here.deployer() as wait,
    ):
        await publish_random(here.running, [1])
        await _promote(here, 0)
        await wait(lambda: good.names() == {f"{federation}:0"} and hanging.calls)
        await _promote(here, 1, 0)
        await wait(lambda: good.names() == {f"{federation}:0", f"{federation}:1"})
        hanging.slow.clear()
        hanging.goes_on.set()
        await wait(lambda: hanging.names() == {f"{federation}:0", f"{federation}:1"})


async def test_lorax_is_told_the_folder_as_it_sees_it(federation: str, tiny: Path, tmp_path: Path) -> None:
    server = StandInLorax()
    (tmp_path / "mounted").symlink_to(tmp_path / "adapters")
    deploy = {"server": "lorax", "seen_as": str(tmp_path / "mounted") + "/"}
    async with (
        _deploying(MemoryBroker(), federation, tiny, tmp_path, server, deploy=deploy) as here,
        here.deployer() as wait,
    ):
        await _promote(here, 0)
        await wait(server.names)
    (path,) = server.names()
    assert path.startswith(f"{tmp_path}/mounted/{federation}-0-")


async def test_a_version_that_the_log_has_no_more_comes_from_the_registry(
    federation: str, tiny: Path, tmp_path: Path
) -> None:
    server = StandInVllm()
    registry = {"url": f"file://{tmp_path / 'registry'}"}
    async with _deploying(MemoryBroker(), federation, tiny, tmp_path, server, registry=registry) as here:
        store_of(here.settings).save(version_of(here.running.initial.layout, 70), AT)
        async with here.deployer() as wait:
            await _promote(here, 70)
            await wait(lambda: server.names() == {f"{federation}:70"})


async def test_a_folder_that_cannot_be_written_ends_it_with_an_error(
    federation: str, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapters").write_text("no folder")
    async with _deploying(MemoryBroker(), federation, tiny, tmp_path, StandInVllm()) as here:
        await _promote(here, 0)
        async with Offload(2) as offload, asyncio.timeout(60):
            with pytest.raises(ConfigError, match=r"deploy\.folder: cannot write"):
                await run_deployer(here.running.broker, here.settings, offload, Shutdown())


async def _promote(here: _Deploying, version: int, *before: int) -> None:
    await promote_in_log(here.running, version, before)


def _loads(server: StandIn) -> list[tuple[str, str]]:
    """What was asked for, in order."""
    return [(body["lora_name"], body["lora_path"]) for path, body in server.calls if path == "/v1/load_lora_adapter"]
