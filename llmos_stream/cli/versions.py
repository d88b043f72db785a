"""`llmos-stream versions`: list, show and export versions, and say which one is served."""

import argparse
import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmos_stream.cli.common import (
    Commands,
    add_command,
    plain_table,
    print_json,
    say,
    show_fields,
    show_table,
)
from llmos_stream.cli.flags import file_path
from llmos_stream.cli.registry import run_export, run_promotion
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plain, plural, size

if TYPE_CHECKING:
    from llmos_stream.log.standing import LocatedVersion


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "versions",
        _run,
        text="list, show, export and promote global versions",
        sections=("federation", "broker", "wire", "registry", "task"),
        examples=(
            "  llmos-stream versions list\n"
            "  llmos-stream versions show 12\n"
            "  llmos-stream versions export 12 --to model.safetensors\n"
            "  llmos-stream versions export 12 --complete --task.entry hospital.task:make\n"
            "  llmos-stream versions export 12 --adapter --to adapter   # for peft\n"
            "  llmos-stream versions promote 12   # the one to serve\n"
            "  llmos-stream versions rollback     # back to the one before"
        ),
    )
    parser.add_argument("action", choices=["list", "show", "export", "promote", "rollback"], help="what to do")
    parser.add_argument(
        "number", nargs="?", type=int, help="which version (promote needs one; show, export: the newest)"
    )
    parser.add_argument(
        "--to", type=file_path, metavar="FILE", help="where export writes; default: FEDERATION-vN.safetensors"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--complete",
        action="store_true",
        help="export the whole state dict of the task's model: also what task.share leaves out, and integer buffers",
    )
    forms.add_argument(
        "--adapter",
        action="store_true",
        help="export a folder for peft, where the task is llm: the adapter without the base model",
    )
    forms.add_argument(
        "--merged",
        action="store_true",
        help="export a folder for transformers, where the task is llm: the base model with the adapter in it",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="rank of an adapter that lora.aggregation = exact has made, which is no product; default: lora.rank",
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    action, number = arguments.action, arguments.number
    if action == "promote" and number is None:
        raise ConfigError("promote needs the number of a version; see llmos-stream versions list")
    if action == "rollback" and number is not None:
        raise ConfigError(f"rollback goes to the version promoted before; for another: versions promote {number}")
    match action:
        case "list":
            return asyncio.run(_list(settings, arguments.json))
        case "show":
            return _show(asyncio.run(_find(settings, number)), arguments.json)
        case "export":
            return run_export(arguments, settings)
        case _:
            return run_promotion(arguments, settings)


async def _list(settings: Settings, as_json: bool) -> int:
    from llmos_stream.broker import Topics, connect
    from llmos_stream.log.index import version_index
    from llmos_stream.registry import nothing_in_log, promoted

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker, version_index(broker, topics.models) as index:
        promotion = await promoted(broker, topics)
        served = None if promotion is None else promotion.version
        rows = [_row(version, served) async for version, _ in index.walk()]
    if as_json:
        print_json(rows)
        return 0
    if not rows:
        say(nothing_in_log(topics.federation))
        return 0
    table = plain_table("version", "time (UTC)", "contributions", "payload", "offset", "weights")
    for row in rows:
        contributions = f"{row['contributions']} from {plural(row['clients'], 'client')}"
        back = row["rolled_back_to"]
        table.add_row(
            f"{row['version']}{' *' if row['promoted'] else ''}",
            datetime.fromtimestamp(row["time_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            contributions if row["contributions"] else "initial weights" if back is None else f"back to version {back}",
            size(row["payload_bytes"]) + (" delta" if row["kind"] == "delta" else ""),
            str(row["offset"]),
            row["weights_digest"][:12],
        )
    show_table(table)
    if served is not None:
        gone = "" if any(row["promoted"] for row in rows) else f": version {served}, no longer in the log"
        say(f"* promoted{gone}")
    return 0


def _row(version: "LocatedVersion", served: int | None) -> dict[str, Any]:
    """A version as `list` shows it."""
    from llmos_stream.log.versions import rolled_back_to

    head = version.head
    return {
        "version": head.number,
        "time_ms": head.time_ms,
        "kind": str(head.kind),
        "contributions": len(head.manifest),
        "rolled_back_to": rolled_back_to(head),
        "clients": len({item.client_id for item in head.manifest}),
        "payload_bytes": head.payload_size,
        "partition": version.partition,
        "offset": version.offset,
        "weights_digest": head.weights_digest.hex(),
        "promoted": head.number == served,
    }


async def _find(settings: Settings, number: int | None) -> "LocatedVersion":
    from llmos_stream.broker import Topics, connect
    from llmos_stream.log.index import version_index
    from llmos_stream.registry import find_in_log

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker, version_index(broker, topics.models) as index:
        return await find_in_log(index, topics.federation, number)


def _show(version: "LocatedVersion", as_json: bool) -> int:
    from llmos_stream.log.versions import initial_weights, rolled_back_to
    from llmos_stream.wire import describe

    head = version.head
    found = describe(head) | {"partition": version.partition, "offset": version.offset}
    if as_json:
        print_json(found)
        return 0
    show_fields(found, ("manifest", "tensors"))
    if head.tensors is not None:
        show_fields({"tensors": len(head.tensors)}, ())
    if not head.manifest:
        back = rolled_back_to(head)
        begins = plain(initial_weights(head))
        say(f"no contributions: {begins if back is None else f'it goes back to version {back}'}")
        return 0
    table = plain_table("client", "sequence", "examples", "staleness", "weight", "clip", "partition", "offset")
    for item in head.manifest:
        table.add_row(
            plain(item.client_id),
            str(item.sequence),
            str(item.num_examples),
            str(item.staleness),
            f"{item.weight:.4g}",
            f"{item.clip:.4g}",
            str(item.partition),
            str(item.offset),
        )
    show_table(table)
    return 0
