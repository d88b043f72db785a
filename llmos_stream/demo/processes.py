"""The demonstration over Kafka: a process for each role, as on machines of their own."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llmos_stream.broker import Broker, Topics, connect
from llmos_stream.config import Settings, to_environment
from llmos_stream.demo.scenario import Scenario
from llmos_stream.errors import LlmosError, TaskError
from llmos_stream.log.control import open_control
from llmos_stream.log.events import follow_events
from llmos_stream.runtime import Shutdown, run_all, run_while
from llmos_stream.training import load_task
from llmos_stream.training.model_evaluator import is_measurable
from llmos_stream.types import Event

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_LOG_TAIL = 2000


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    process: asyncio.subprocess.Process
    output: Path
    vital: bool


async def run_processes(
    scenario: Scenario, take: Callable[[Event], object], shutdown: Shutdown, *, resume: bool = False
) -> None:
    """Run until the stop rule or a request ends it, and give every event to `take`.

    `resume` goes on with a run that has ended: clients begin once it does.

    A client that fails is logged, and the run goes on.

    Raises:
        LlmosError: The aggregator or the evaluator failed; the message ends with its last output.
    """
    settings = scenario.settings
    started, over = Shutdown(), Shutdown()

    def taken(event: Event) -> None:
        started.request()
        take(event)

    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmos-demo-")))
        broker = await stack.enter_async_context(connect(settings.broker))
        # Here, where it is read, and not in the aggregator's own output: what is wrong with topics that were there.
        await broker.create_topics(Topics(settings.federation.name).specs(settings.topics))
        children: list[_Child] = []
        stack.push_async_callback(_end, children)

        async def roles() -> None:
            try:
                flags = ("--quiet", "--resume") if resume else ("--quiet",)
                children.append(await _start("aggregator", settings, folder, "aggregator", *flags, vital=True))
                if resume:
                    going_on = _until_going_on(broker, topics, shutdown)
                    await run_while(going_on, _until_exit(children[0], started, shutdown))
                if await asyncio.to_thread(_has_evaluator, settings):
                    children.append(await _start("evaluator", settings, folder, "evaluate", vital=True))
                for own in scenario.clients:
                    children.append(await _start(own.client.id or "client", own, folder, "client"))
                exits = run_all(*(_until_exit(child, started, shutdown) for child in children))
                await run_while(exits, _forward_stop(children, shutdown))
            finally:
                over.request()

        topics = Topics(settings.federation.name)
        await run_all(roles(), follow_events(broker, topics, taken, over))


def _has_evaluator(settings: Settings) -> bool:
    """Whether it has something to measure. What is wrong with the task is for the roles to say."""
    try:
        task = load_task(settings.task, settings.client)
        return is_measurable(task, settings.task, settings.evaluator.batch_size)
    except TaskError:
        return True


async def _until_going_on(broker: Broker, topics: Topics, shutdown: Shutdown) -> None:
    """Wait until the run goes on: who joins before would take it for ended, and leave."""
    async with open_control(broker, topics) as control:
        while control.finished is not None and not shutdown.requested:
            await control.poll(_LOOK_SECONDS)


async def _start(name: str, settings: Settings, folder: Path, *arguments: str, vital: bool = False) -> _Child:
    own = settings.changed(client={"state_dir": (settings.client.state_dir or folder) / name})
    output = folder / f"{name}.log"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llmos_stream",
            *arguments,
            env=_environment(own),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            # The terminal's Ctrl-C must not reach it: the parent asks its children to stop, in order.
            start_new_session=True,
        )
    return _Child(name, process, output, vital)


def _environment(settings: Settings) -> dict[str, str]:
    """These settings only: a flag may have overridden or unset those in this process's environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("LLMOS_")}
    password = settings.broker.sasl_password
    secrets = {} if password is None else {"LLMOS_BROKER__SASL_PASSWORD": password.get_secret_value()}
    return inherited | to_environment(settings) | secrets


async def _until_exit(child: _Child, started: Shutdown, shutdown: Shutdown) -> None:
    code = await child.process.wait()
    if code == 0 or shutdown.requested:
        return
    if child.vital:
        raise LlmosError(_ending(child, code))
    # What stops every process stops the aggregator too, whose error says it once: wait until that one is up.
    while not (started.requested or shutdown.requested):
        await shutdown.wait(_LOOK_SECONDS)
    logger.error("%s", _ending(child, code))


def _ending(child: _Child, code: int) -> str:
    if code < 0:
        return f"{child.name} was killed ({signal.Signals(-code).name})"
    with child.output.open("rb") as file:
        file.seek(max(0, child.output.stat().st_size - _LOG_TAIL))
        tail = file.read().decode(errors="replace").strip()
    return f"{child.name} ended with status {code}:\n{tail}"


async def _forward_stop(children: Sequence[_Child], shutdown: Shutdown) -> None:
    """When a stop is asked for, ask the children."""
    await shutdown.wait()
    _terminate(children)


def _terminate(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process.returncode is None:
            child.process.terminate()


async def _end(children: Sequence[_Child]) -> None:
    """End all processes: ask, wait for a while, then kill. An interrupt while it waits kills at once."""
    _terminate(children)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                for child in children:
                    await child.process.wait()
    finally:
        for child in children:
            if child.process.returncode is None:
                child.process.kill()
            await child.process.wait()
