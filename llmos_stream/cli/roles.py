"""`llmos-stream aggregator`, `client` and `evaluate`: the roles of a federation, a process each."""

import argparse
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, err, note, print_json, say, start_logging
from llmos_stream.cli.flags import load_settings
from llmos_stream.config import Settings
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import ExitCode, Offload, Shutdown, run_process

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.roles import Evaluation, RunEnd
    from llmos_stream.training import Task

_SHARED = ("federation", "broker", "wire", "task", "runtime")


def add(commands: Commands) -> None:
    aggregator = add_command(
        commands,
        "aggregator",
        run_aggregator_command,
        text="fold updates into versions until the run ends",
        sections=(*_SHARED, "topics", "codec", "aggregation", "staleness", "server_optimizer", "stop"),
        examples=(
            "  llmos-stream aggregator --aggregation.buffer-size 8 --stop.target 0.97\n"
            "  llmos-stream aggregator --aggregation.strategy fedasync --staleness.kind hinge"
        ),
    )
    aggregator.add_argument("--quiet", action="store_true", help="no live progress")
    add_command(
        commands,
        "client",
        run_client_command,
        text="train on this machine's data and publish updates until the run ends",
        sections=(*_SHARED, "client", "codec"),
        examples=(
            "  llmos-stream client --client.shard 3\n"
            "  llmos-stream client --client.id ward-7 --task.entry hospital.task:make"
        ),
    )
    evaluate = add_command(
        commands,
        "evaluate",
        run_evaluate_command,
        text="measure every version on held-out data until the run ends",
        sections=(*_SHARED, "evaluator"),
        examples="  llmos-stream evaluate\n  llmos-stream evaluate --once --json",
    )
    evaluate.add_argument("--once", action="store_true", help="measure the newest version and stop")


def run_aggregator_command(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments)
    end: list[RunEnd | None] = []

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> None:
        from llmos_stream.cli.progress import show_progress
        from llmos_stream.roles import initial_of, run_aggregator
        from llmos_stream.runtime import run_while

        progress = [] if arguments.quiet or arguments.json else [show_progress(broker, settings, err())]
        main = run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown)
        end.append(await run_while(main, *progress))

    code = _run_role(settings, role)
    if code is ExitCode.DONE:
        found = end[0]
        if arguments.json:
            print_json(asdict(found) if found else {"reason": "stopped", "detail": None, "version": None})
        elif found:
            say(f"version {found.version}: {found.detail}")
        else:
            note("stopped; the next start goes on from the newest version")
    return code


def run_client_command(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments)
    sent: list[int] = []

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> None:
        from llmos_stream.roles import ClientState, client_id_of, run_client, state_folder

        client_id = client_id_of(settings)
        with ClientState(client_id, state_folder(settings, client_id)) as state:
            sent.append(await run_client(broker, settings, task, state, offload, shutdown))

    code = _run_role(settings, role)
    if code is ExitCode.DONE:
        if arguments.json:
            print_json({"updates": sent[0]})
        else:
            say(f"{plural(sent[0], 'update')} sent")
    return code


def run_evaluate_command(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments)
    last: list[Evaluation | None] = []

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> None:
        from llmos_stream.roles import evaluate_once, run_evaluator

        evaluate = evaluate_once if arguments.once else run_evaluator
        last.append(await evaluate(broker, settings, task, offload, shutdown))

    code = _run_role(settings, role)
    if code is ExitCode.DONE:
        found = last[0]
        if arguments.json:
            print_json(asdict(found) if found else dict.fromkeys(("version", "metrics", "num_examples", "seconds")))
        elif found is None:
            note("stopped before there was a version")
        else:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(found.metrics.items()))
            say(f"version {found.version}: {metrics} on {found.num_examples} examples")
    return code


def _run_role(settings: Settings, role: Callable[["Broker", "Task", Offload, Shutdown], Awaitable[None]]) -> ExitCode:
    """Connect, load the task and run the role under signals."""

    async def process(shutdown: Shutdown) -> None:
        from llmos_stream.broker import connect
        from llmos_stream.training import load_task, use_threads

        use_threads(settings.runtime)
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(connect(settings.broker))
            offload = await stack.enter_async_context(Offload(settings.runtime.workers))
            task = await offload.run(load_task, settings.task, settings.client)
            await role(broker, task, offload, shutdown)

    start_logging(settings)
    return run_process(process)
