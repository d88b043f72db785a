"""`llmos-stream pause` and `llmos-stream resume`."""

import argparse
import asyncio
import math
from functools import partial

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError


def add(commands: Commands) -> None:
    """Declare both commands."""
    for name, paused, text in (
        ("pause", True, "let training rest: no update is begun and none is folded"),
        ("resume", False, "let training go on after a pause"),
    ):
        run = partial(_run, paused=paused)
        example = f"  llmos-stream {name} --federation.name hospital"
        add_command(commands, name, run, text=text, sections=("federation", "broker"), examples=example)


def _run(arguments: argparse.Namespace, settings: Settings, *, paused: bool) -> int:
    hours = asyncio.run(_set_paused(settings, paused))
    if paused:
        kept = hours if hours is None or math.isfinite(hours) else None
        told = (
            "paused: clients rest, nothing is folded; llmos-stream resume lets it go on\n"
            f"updates under way wait in the log {_how_long(settings, hours)}"
        )
        answer(arguments, {"paused": True, "updates_kept_hours": kept}, told)
    else:
        answer(arguments, {"paused": False}, "the federation goes on")
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
    from llmos_stream.log.pausing import set_paused, updates_kept_hours

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        await set_paused(broker, topics, paused)
        try:
            return await updates_kept_hours(broker, topics) if paused else None
        except BrokerError:
            return None  # it is paused all the same
