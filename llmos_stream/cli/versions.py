"""`llmos-stream versions`: list, show and export the versions that the log holds."""

import argparse
import asyncio
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from llmos_stream.cli.common import Commands, add_command, note, out, plain_table, print_json, say, start_logging
from llmos_stream.cli.export import check_target, write_weights
from llmos_stream.cli.flags import load_settings
from llmos_stream.cli.told import told
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plain, plural, size

if TYPE_CHECKING:
    from llmos_stream.roles import LoggedVersion


@dataclass(frozen=True, slots=True)
class _Row:
    """A version as `list` shows it."""

    version: int
    time_ms: int
    kind: str
    contributions: int
    clients: int
    payload_bytes: int
    partition: int
    offset: int
    weights_digest: str


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "versions",
        run,
        text="list, show and export global versions",
        sections=("federation", "broker", "wire"),
        examples=(
            "  llmos-stream versions list\n"
            "  llmos-stream versions show 12\n"
            "  llmos-stream versions export 12 --to model.safetensors"
        ),
    )
    parser.add_argument("action", choices=["list", "show", "export"], help="what to do")
    parser.add_argument("number", nargs="?", type=int, help="which version (show, export); default: the newest")
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="where export writes; default: FEDERATION-vN.safetensors"
    )


def run(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments)
    start_logging(settings)
    if arguments.action == "list":
        return asyncio.run(_list(settings, arguments.json))
    return asyncio.run(_one(settings, arguments))


async def _list(settings: Settings, as_json: bool) -> int:
    from llmos_stream.broker import Topics, connect
    from llmos_stream.roles import read_versions

    topic = Topics(settings.federation.name).models
    rows = []
    async with connect(settings.broker) as broker, broker.reader([topic], start="earliest") as reader:
        async for version in read_versions(reader, settings.wire):
            rows.append(_row(version))
    if as_json:
        print_json([asdict(row) for row in rows])
        return 0
    if not rows:
        say(_nothing(settings))
        return 0
    table = plain_table("version", "time (UTC)", "contributions", "payload", "offset", "weights")
    for row in rows:
        table.add_row(
            str(row.version),
            datetime.fromtimestamp(row.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            f"{row.contributions} from {plural(row.clients, 'client')}" if row.contributions else "initial weights",
            size(row.payload_bytes) + (" delta" if row.kind == "delta" else ""),
            str(row.offset),
            row.weights_digest[:12],
        )
    out().print(table)
    return 0


def _row(version: "LoggedVersion") -> _Row:
    head = version.head
    return _Row(
        version=head.number,
        time_ms=head.time_ms,
        kind=str(head.kind),
        contributions=len(head.manifest),
        clients=len({item.client_id for item in head.manifest}),
        payload_bytes=head.payload_size,
        partition=version.partition,
        offset=version.offset,
        weights_digest=head.weights_digest.hex(),
    )


async def _one(settings: Settings, arguments: argparse.Namespace) -> int:
    version = await _find(settings, arguments.number)
    if arguments.action == "show":
        return _show(version, arguments.json)
    path = arguments.to or Path(f"{settings.federation.name}-v{version.head.number}.safetensors")
    return await _export(settings, version.head.number, path, arguments.json)


async def _find(settings: Settings, number: int | None) -> "LoggedVersion":
    from llmos_stream.broker import Topics, connect
    from llmos_stream.roles import read_versions

    topic = Topics(settings.federation.name).models
    found = None
    seen = []
    async with connect(settings.broker) as broker, broker.reader([topic], start="earliest") as reader:
        async for version in read_versions(reader, settings.wire):
            seen.append(version.head.number)
            if number is None or version.head.number == number:
                found = version
            if version.head.number == number:
                break
    if found is None:
        raise ConfigError(
            f"version {number} is not in the log, which holds {seen[0]} to {seen[-1]}" if seen else _nothing(settings)
        )
    return found


def _nothing(settings: Settings) -> str:
    return f"federation {settings.federation.name} has no versions in the log; is its aggregator running?"


def _show(version: "LoggedVersion", as_json: bool) -> int:
    from llmos_stream.wire import describe

    head = version.head
    found = describe(head) | {"partition": version.partition, "offset": version.offset}
    if as_json:
        print_json(found)
        return 0
    console = out()
    for name, value in found.items():
        if name not in ("manifest", "tensors") and value not in (None, {}):
            console.print(Text.assemble((name, "bold"), f"  {told(value)}"), soft_wrap=True)
    if head.tensors is not None:
        console.print(Text.assemble(("tensors", "bold"), f"  {len(head.tensors)}"))
    if not head.manifest:
        say("no contributions: the initial weights")
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
    console.print(table)
    return 0


async def _export(settings: Settings, number: int, path: Path, as_json: bool) -> int:
    from llmos_stream.broker import connect
    from llmos_stream.replay import ReplayLog
    from llmos_stream.runtime import Offload

    check_target(path)
    async with (
        connect(settings.broker) as broker,
        Offload(settings.runtime.workers) as offload,
        ReplayLog(broker, settings, offload) as log,
    ):
        version = await log.version(number)
    digest = version.head.weights_digest.hex()
    metadata = {"federation": settings.federation.name, "version": str(number), "weights_digest": digest}
    tensors = write_weights(version, path, metadata)
    if as_json:
        print_json({"file": str(path), "version": number, "tensors": tensors, "weights_digest": digest})
    else:
        note(f"wrote version {number}, {tensors} tensors, to {path}")
    return 0
