"""`llmos-stream pause` and `llmos-stream resume`."""

import argparse
import asyncio
from functools import partial

from llmos_stream.cli.common import Commands, add_command, print_json, say, start_logging
from llmos_stream.cli.flags import load_settings
from llmos_stream.config import Settings

_SECTIONS = ("federation", "broker")


def add(commands: Commands) -> None:
    add_command(
        commands,
        "pause",
        partial(_run, paused=True),
        text="let training rest: no update is begun and none is folded",
        sections=_SECTIONS,
        examples="  llmos-stream pause --federation.name hospital",
    )
    add_command(
        commands,
        "resume",
        partial(_run, paused=False),
        text="let training go on after a pause",
        sections=_SECTIONS,
        examples="  llmos-stream resume --federation.name hospital",
    )


def _run(arguments: argparse.Namespace, *, paused: bool) -> int:
    settings = load_settings(arguments)
    start_logging(settings)
    asyncio.run(_tell(settings, paused))
    if arguments.json:
        print_json({"paused": paused})
    elif paused:
        say("paused: clients rest, nothing is folded; llmos-stream resume lets it go on")
    else:
        say("the federation goes on")
    return 0


async def _tell(settings: Settings, paused: bool) -> None:
    from llmos_stream.broker import connect
    from llmos_stream.roles import set_paused

    async with connect(settings.broker) as broker:
        await set_paused(broker, settings, paused)
