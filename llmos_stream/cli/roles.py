"""`llmos-stream aggregator`, `client` and `evaluate`: the roles of a federation, a process each."""

import argparse
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_stream.cli.common import Commands, add_command, answer, err
from llmos_stream.cli.process import run_connected, run_role
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import Offload, Shutdown, run_while

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.log import RunEnd
    from llmos_stream.roles.client.outcomes import Outcomes
    from llmos_stream.training import Task
    from llmos_stream.training.model_evaluator import Evaluation

_SHARED = ("federation", "broker", "wire", "task", "runtime", "operations", "tracing")


def add(commands: Commands) -> None:
    """Declare the three commands."""
    aggregator = add_command(
        commands,
        "aggregator",
        _run_aggregator,
        text="fold updates into versions until the run ends",
        sections=(
            *_SHARED,
            "topics",
            "codec",
            "aggregator",
            "aggregation",
            "staleness",
            "server_optimizer",
            "versions",
            "guard",
            "participation",
            "stop",
            "registry",
        ),
        examples=(
            "  llmos-stream aggregator --aggregation.buffer-size 8 --stop.target 0.97\n"
            "  llmos-stream aggregator --aggregation.buffer-size 8 --staleness.kind hinge\n"
            "  llmos-stream aggregator --init model.safetensors   # begins with these weights\n"
            "  llmos-stream aggregator --init-from ward:12\n"
            "  llmos-stream aggregator --shadow adam --server-optimizer.name adam\n"
            "  llmos-stream aggregator --stop.max-versions 40   # after an end at 20: goes on"
        ),
    )
    aggregator.add_argument("--quiet", action="store_true", help="no live progress")
    aggregator.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that has ended; not needed under another limit than it ended under",
    )
    aggregator.add_argument(
        "--shadow",
        metavar="NAME",
        help="leave the live run alone: fold what it accepts under this command's rule into a federation "
        "of its own, FEDERATION.shadow.NAME; needs no task",
    )
    add_command(
        commands,
        "client",
        _run_client,
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
        _run_evaluate,
        text="measure every version on held-out data until the run ends",
        sections=(*_SHARED, "evaluator"),
        examples="  llmos-stream evaluate\n  llmos-stream evaluate --once --json",
    )
    evaluate.add_argument("--once", action="store_true", help="measure the newest version and stop")


def _run_aggregator(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.shadow is not None and (settings.aggregator.init or settings.aggregator.init_from):
        raise ConfigError("--init, --init-from: a shadow begins with the live run's newest version; leave them out")

    async def watched(broker: "Broker", shown: Settings, main: Coroutine[Any, Any, "RunEnd | None"]) -> "RunEnd | None":
        from llmos_stream.cli.progress import show_progress

        progress = [] if arguments.quiet or arguments.json else [show_progress(broker, shown, err())]
        return await run_while(main, *progress)

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> "RunEnd | None":
        from llmos_stream.registry import warm_start_of
        from llmos_stream.roles.aggregator import initial_of, run_aggregator

        made = partial(initial_of, task, settings)
        warm = warm_start_of(settings)
        main = run_aggregator(broker, settings, made, offload, shutdown, resume=arguments.resume, warm_start=warm)
        return await watched(broker, settings, main)

    async def shadow(broker: "Broker", offload: Offload, shutdown: Shutdown) -> "RunEnd | None":
        from llmos_stream.replay.shadow import run_shadow, shadow_settings

        shown = shadow_settings(settings, arguments.shadow)
        main = run_shadow(broker, settings, arguments.shadow, offload, shutdown, resume=arguments.resume)
        return await watched(broker, shown, main)

    ended = (
        run_role("aggregator", settings, role)
        if arguments.shadow is None
        else run_connected("shadow", settings, shadow)
    )
    if ended.in_order:
        if end := ended.result:
            tell_end(arguments, end)
        else:
            stopped = {"reason": "stopped", "detail": None, "version": None}
            answer(arguments, stopped, "stopped; the next start goes on from the newest version")
    return ended.status


def tell_end(arguments: argparse.Namespace, end: "RunEnd") -> None:
    """Say how a run has ended."""
    told = {"reason": end.reason, "detail": end.detail, "version": end.version}
    answer(arguments, told, f"version {end.version}: {end.detail}")


def _run_client(arguments: argparse.Namespace, settings: Settings) -> int:

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> "tuple[int, Outcomes]":
        from llmos_stream.roles.client import ClientState, client_id_of, run_client, state_folder

        client_id = client_id_of(settings.client)
        with ClientState(client_id, state_folder(settings.client, settings.federation.name, client_id)) as state:
            sent = await run_client(broker, settings, task, state, offload, shutdown)
            return sent, state.outcomes

    ended = run_role("client", settings, role)
    if ended.in_order:
        sent, outcomes = ended.result or (0, None)
        known = {} if outcomes is None else outcomes.summary()
        answer(arguments, {"updates": sent, **known}, f"{plural(sent, 'update')} sent{_said(known)}")
    return ended.status


def _said(known: Mapping[str, object]) -> str:
    """What became of a client's updates, as the end of a sentence."""
    words = {"counted": "counted", "dropped": "not counted", "waiting": "not decided yet"}
    return "".join(f", {known[key]} {word}" for key, word in words.items() if known.get(key)) + (
        f" ({known['why']})" if known.get("why") else ""
    )


def _run_evaluate(arguments: argparse.Namespace, settings: Settings) -> int:

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> "Evaluation | None":
        from llmos_stream.roles.evaluator import evaluate_once, run_evaluator

        evaluate = evaluate_once if arguments.once else run_evaluator
        return await evaluate(broker, settings, task, offload, shutdown)

    ended = run_role("evaluator", settings, role, patient=not arguments.once)
    if ended.in_order:
        if found := ended.result:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(found.metrics.items()))
            told = f"version {found.version}: {metrics} on {found.num_examples} examples"
            answer(arguments, asdict(found), told)
        else:
            nothing = dict.fromkeys(("version", "metrics", "num_examples", "seconds"))
            answer(arguments, nothing, "stopped before there was a version")
    return ended.status
