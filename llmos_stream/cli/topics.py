"""`llmos-stream topics`: the topics of a federation."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer, err, note, plain_table, print_json, show_table
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, LlmosError, NotFound

if TYPE_CHECKING:
    from llmos_stream.broker import Broker, TopicInfo, Topics, TopicSpec
    from llmos_stream.log.control import Leader


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "topics",
        _run,
        text="create, list, repair or delete the topics of a federation",
        sections=("federation", "broker", "topics"),
        examples=(
            "  llmos-stream topics create --federation.name hospital\n"
            "  llmos-stream topics list --json\n"
            "  llmos-stream topics repair --yes                    # sets what differs\n"
            "  llmos-stream topics delete --federation.name trial-3   # asks first"
        ),
    )
    parser.add_argument(
        "action",
        choices=["create", "list", "repair", "delete"],
        help="create what is missing, list what is there and what is wrong with it, set what is set otherwise than the "
        "settings say, or delete a federation's log with all its versions",
    )
    parser.add_argument("--yes", action="store_true", help="repair or delete without asking")
    parser.add_argument("--force", action="store_true", help="with --yes: delete although an aggregator leads")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    match arguments.action:
        case "delete":
            return asyncio.run(_delete(arguments, settings))
        case "repair":
            return asyncio.run(_repair(arguments, settings))
        case action:
            return asyncio.run(_topics(settings, action, arguments.json))


async def _found(broker: "Broker", topics: "Topics") -> list["TopicInfo"]:
    """Those that are there. Raises NotFound if there is none."""
    found = [topic for topic in await broker.list_topics(f"{topics.federation}.") if topic.name in topics.names]
    if not found:
        raise NotFound(
            f"federation {topics.federation} has no topics (llmos-stream topics create makes them), or none that this "
            "user may see (an ACL must allow Describe)"
        )
    return found


async def _delete(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.broker import Topics, connect
    from llmos_stream.log.liveness import living_leader

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        names = [topic.name for topic in await _found(broker, topics)]
        # One that is silent for so long has lost its place to a standby, if there is any.
        leader = await living_leader(broker, topics, 2 * settings.aggregator.takeover_seconds)
        if leader is not None and arguments.yes and not arguments.force:
            raise ConfigError(
                f"{_is_led(topics, leader)}: end it first (llmos-stream finish), or delete it all the same with "
                "--yes --force"
            )
        if not arguments.yes:
            what = f"This deletes {', '.join(names)}: every version, update and event of federation"
            warning = [] if leader is None else [f"{_is_led(topics, leader)}; it ends, and so do its clients."]
            _ask(arguments.action, topics.federation, [*warning, f"{what} {topics.federation}, for good."])
        await broker.delete_topics(names)
    answer(arguments, {"deleted": names}, f"deleted {', '.join(names)}")
    return 0


def _is_led(topics: "Topics", leader: "Leader") -> str:
    return (
        f"federation {topics.federation} is live: an aggregator leads it (instance {leader.instance}, "
        f"term {leader.term}, heard just now)"
    )


async def _repair(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.broker import Topics, connect
    from llmos_stream.broker.policies import differences

    topics = Topics(settings.federation.name)
    wanted = {spec.name: spec for spec in topics.specs(settings.topics)}
    changes: dict[str, dict[str, str]] = {}
    lines = []
    async with connect(settings.broker) as broker:
        for topic in await _found(broker, topics):
            for difference in differences(wanted[topic.name], topic):
                if difference.setting == "partitions":
                    note(f"{topic.name}: {difference}; only other topics would change that")
                    continue
                changes.setdefault(topic.name, {})[difference.setting] = difference.wanted
                lines.append(f"{topic.name}: {difference}")
        if changes and not arguments.yes:
            _ask(arguments.action, topics.federation, ["This sets as wanted, and Kafka deletes by it:", *lines])
        for name, config in changes.items():
            await broker.configure_topic(name, config)
    answer(arguments, {"repaired": changes}, "\n".join(f"set: {line}" for line in lines) or "nothing to repair")
    return 0


def _ask(action: str, federation: str, what: Sequence[str]) -> None:
    """Ask a person, who types the federation's name. Raises ConfigError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"topics {action} asks first, and nobody is at a terminal here: --yes {action}s without asking"
        )
    for line in what:
        note(line)
    err().print("Type the federation's name to go on: ", end="")
    if sys.stdin.readline().strip() != federation:
        raise LlmosError("nothing was changed")


async def _topics(settings: Settings, action: str, as_json: bool) -> int:
    from llmos_stream.broker import Topics, connect
    from llmos_stream.broker.policies import differences, policy

    topics = Topics(settings.federation.name)
    wanted = {spec.name: spec for spec in topics.specs(settings.topics)}
    async with connect(settings.broker) as broker:
        created = await broker.create_topics(list(wanted.values())) if action == "create" else []
        found = await _found(broker, topics)
    different = {topic.name: differences(wanted[topic.name], topic) for topic in found}
    if as_json:
        print_json(
            [
                {
                    "name": topic.name,
                    "partitions": topic.partitions,
                    "config": dict(topic.config),
                    "policy": policy(wanted[topic.name], topic),
                    "differences": [asdict(difference) for difference in different[topic.name]],
                    "created": topic.name in created,
                }
                for topic in found
            ]
        )
        return 0
    if action == "create":
        table = plain_table("topic", "partitions", "created")
        for topic in found:
            there = "was there, and differs" if different[topic.name] else "was there"
            table.add_row(topic.name, str(topic.partitions), "now" if topic.name in created else there)
        show_table(table)
        return 0
    table = plain_table("topic", "partitions")
    table.add_column("policy", overflow="fold")
    for topic in found:
        table.add_row(topic.name, str(topic.partitions), _policy(wanted[topic.name], topic))
    show_table(table)
    told = [(not one.harm, f"{name}: {one}") for name, ones in different.items() for one in ones]
    for _, line in sorted(told, key=lambda one: one[0]):  # the harmful of all topics first
        note(line)
    if told:
        note("llmos-stream topics repair sets these as the settings say")
    return 0


def _policy(wanted: "TopicSpec", topic: "TopicInfo") -> str:
    from llmos_stream.broker.policies import policy

    said = ", ".join(f"{name}={value}" for name, value in policy(wanted, topic).items())
    return said or "not for this user to see (DescribeConfigs)"
