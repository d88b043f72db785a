"""`llmos-stream topics`: the topics of a federation."""

import argparse
import asyncio

from llmos_stream.cli.common import Commands, add_command, plain_table, print_json, show_table
from llmos_stream.config import Settings
from llmos_stream.errors import NotFound


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "topics",
        _run,
        text="create or list the topics of a federation",
        sections=("federation", "broker", "topics"),
        examples="  llmos-stream topics create --federation.name hospital\n  llmos-stream topics list --json",
    )
    parser.add_argument("action", choices=["create", "list"], help="create what is missing, or list what is there")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_topics(settings, arguments.action, arguments.json))


async def _topics(settings: Settings, action: str, as_json: bool) -> int:
    from llmos_stream.broker import Topics, connect

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        created = await broker.create_topics(topics.specs(settings.topics)) if action == "create" else []
        found = [topic for topic in await broker.list_topics(f"{topics.federation}.") if topic.name in topics.names]
    if not found:
        raise NotFound(
            f"federation {settings.federation.name} has no topics, or none that this user may see: "
            "llmos-stream topics create"
        )
    if as_json:
        print_json(
            [
                {
                    "name": topic.name,
                    "partitions": topic.partitions,
                    "config": dict(topic.config),
                    "created": topic.name in created,
                }
                for topic in found
            ]
        )
        return 0
    table = plain_table("topic", "partitions")
    if action == "create":
        table.add_column("created")
        for topic in found:
            table.add_row(topic.name, str(topic.partitions), "now" if topic.name in created else "was there")
    else:
        table.add_column("policy", overflow="fold")
        for topic in found:
            policy = ", ".join(f"{name}={value}" for name, value in sorted(topic.config.items()))
            table.add_row(topic.name, str(topic.partitions), policy)
    show_table(table)
    return 0
