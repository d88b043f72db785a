"""`llmos-stream serve`: the federation's model, asked over HTTP while new versions come."""

import argparse
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.process import run_role
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, install
from llmos_stream.runtime import MODEL, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.training import Task


def add(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "serve",
        _run,
        text="answer predictions over HTTP with the versions of a federation",
        sections=("federation", "broker", "wire", "task", "runtime", "operations", "inference", "registry", "tracing"),
        examples=(
            "  llmos-stream serve --task.entry digits      then open http://127.0.0.1:8000/docs\n"
            "  llmos-stream serve --inference.canary 0.1"
        ),
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        from llmos_stream.inference import run_inference
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}; {install('serve')}") from None

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> int | None:
        return await run_inference(broker, settings, task, offload, shutdown)

    # It goes on answering without a broker, so all that it needs is a version.
    ended = run_role("inference", settings, role, needs=(MODEL,), endless=True)
    if ended.in_order:
        version = ended.result
        told = "stopped before there was a version" if version is None else f"version {version} served last"
        answer(arguments, {"version": version}, told)
    return ended.status
