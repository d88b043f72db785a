"""`llmos-stream finish`: ends a run."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmos_stream.cli.common import Commands, add_command, note
from llmos_stream.cli.process import federation_of, run_connected
from llmos_stream.cli.roles import tell_end
from llmos_stream.config import Settings
from llmos_stream.runtime import Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.log import RunEnd

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"runtime": {"log_level": "warning"}}
_PATIENCE_SECONDS = 5.0


def add(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "finish",
        _run,
        text="end a run with its newest version: clients leave, evaluators measure what is left",
        sections=("federation", "broker", "wire", "topics", "aggregator", "runtime"),
        defaults=_DEFAULTS,
        examples=(
            "  llmos-stream finish --federation.name hospital\n"
            "  llmos-stream aggregator --resume    # afterwards, to go on with it"
        ),
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> "RunEnd | None":
        from llmos_stream.roles.aggregator.finishing import finish_run
        from llmos_stream.runtime import run_while

        async def say() -> None:
            if not await shutdown.wait(_PATIENCE_SECONDS):
                note("waiting for the aggregator that leads to end the run ...")

        federation = federation_of(broker, settings, offload, shutdown)
        return await run_while(finish_run(federation, settings), say())

    ended = run_connected("finish", settings, role, patient=False)
    if ended.result is not None:
        tell_end(arguments, ended.result)
    return ended.status
