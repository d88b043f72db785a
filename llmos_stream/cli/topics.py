"""`llmos-stream topics`: the topics of a federation."""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer, err, note, plain_table, print_json, show_table
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, LlmosError, NotFound

if TYPE_CHECKING:
    from llmos_stream.broker import Broker, TopicInfo, Topics


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "topics",
        _run,
        text="create, list or delete the topics of a federation",
        sections=("federation", "broker", "topics"),
        examples=(
            "  llmos-stream topics create --federation.name hospital\n"
            "  llmos-stream topics list --json\n"
            "  llmos-stream topics delete --federation.name trial-3   # asks first"
        ),
    )
    parser.add_argument(
        "action",
        choices=["create", "list", "delete"],
        help="create what is missing, list what is there, or delete a federation's log with all its versions",
    )
    parser.add_argument("--yes", action="store_true", help="delete without asking")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.action == "delete":
        return asyncio.run(_delete(arguments, settings))
    return asyncio.run(_topics(settings, arguments.action, arguments.json))


async def _found(broker: "Broker", topics: "Topics") -> list["TopicInfo"]:
    """Those that are there. Raises NotFound if there is none."""
    found = [topic for topic in await broker.list_topics(f"{topics.federation}.") if topic.name in topics.names]
    if not found:
        raise NotFound(
            f"federation {topics.federation} has no topics, or none that this user may see: llmos-stream topics create"
        )
    return found


async def _delete(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.broker import Topics, connect

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        names = [topic.name for topic in await _found(broker, topics)]
        if not arguments.yes:
            _ask(topics.federation, names)
        await broker.delete_topics(names)
    answer(arguments, {"deleted": names}, f"deleted {', '.join(names)}")
    return 0


def _ask(federation: str, names: list[str]) -> None:
    """Ask a person, who types the federation's name. Raises ConfigError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError("topics delete asks first, and nobody is at a terminal here: --yes deletes without asking")
    note(f"This deletes {', '.join(names)}: every version, update and event of federation {federation}, for good.")
    err().print("Type the federation's name to go on: ", end="")
    if sys.stdin.readline().strip() != federation:
        raise LlmosError("nothing was deleted")


async def _topics(settings: Settings, action: str, as_json: bool) -> int:
    from llmos_stream.broker import Topics, connect

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        created = await broker.create_topics(topics.specs(settings.topics)) if action == "create" else []
        found = await _found(broker, topics)
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
