"""`llmos-stream pause` and `llmos-stream resume`."""

import argparse
import asyncio
import math
from functools import partial

from llmos_stream.cli.common import Commands, add_command, print_json, say, start_logging
from llmos_stream.cli.flags import load_settings
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError

_SECTIONS = ("federation", "broker")


def add(commands: Commands) -> None:
    """Declare both commands."""
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
    if paused:
        hours = asyncio.run(_set_paused(settings, True))
        if arguments.json:
            print_json({"paused": True, "updates_kept_hours": hours if hours is None or math.isfinite(hours) else None})
        else:
            say("paused: clients rest, nothing is folded; llmos-stream resume lets it go on")
            say(f"updates under way wait in the log {_how_long(settings, hours)}")
    else:
        asyncio.run(_set_paused(settings, False))
        if arguments.json:
            print_json({"paused": False})
        else:
            say("the federation goes on")
    return 0


def _how_long(settings: Settings, hours: float | None) -> str:
    if hours is None:
        return f"for as long as the broker keeps them (retention.ms of {settings.federation.name}.updates)"
    if math.isinf(hours):
        return "until they are folded"
    return f"for at most {hours:g} hours (topics.updates_retention_hours)"


async def _set_paused(settings: Settings, paused: bool) -> float | None:
    """Return how many hours the log keeps what is under way in a pause, where the broker says so."""
    from llmos_stream.broker import Topics, connect
    from llmos_stream.log import set_paused, updates_kept_hours

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        await set_paused(broker, topics, paused)
        try:
            return await updates_kept_hours(broker, topics) if paused else None
        except BrokerError:
            return None  # it is paused all the same
