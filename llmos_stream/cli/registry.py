"""`llmos-stream archive`, and the actions of `llmos-stream versions` that know the registry."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.export import check_target, write_file, write_weights
from llmos_stream.cli.process import run_connected
from llmos_stream.config import Settings
from llmos_stream.errors import LlmosError, NotFound, OffsetGone, Rejected, TopicMissing
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import BROKER, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.log import Promotion, Version, VersionIndex
    from llmos_stream.log.standing import LocatedVersion

_NAMED = 10
_FETCH_SECONDS = 120.0

T = TypeVar("T")


def add(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "archive",
        _run_archive,
        text="keep versions past the log's retention until the run ends",
        sections=("federation", "broker", "wire", "registry", "runtime", "operations", "tracing"),
        examples=(
            "  llmos-stream archive --registry.url file:///srv/models\n"
            "  llmos-stream archive --registry.every 50 --registry.most 20"
        ),
    )


def _run_archive(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.registry import STORE, open_store, run_archiver

    store = open_store(settings.registry, settings.federation.name)

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> Sequence[int]:
        return await run_archiver(broker, settings, store, offload, shutdown)

    ended = run_connected("archiver", settings, role, needs=(BROKER, STORE))
    if ended.in_order:
        archived = ended.result or []
        last = f", the last one {archived[-1]}" if archived else ""
        answer(arguments, {"archived": archived}, f"{plural(len(archived), 'version')} archived{last}")
    return ended.status


def run_promotion(arguments: argparse.Namespace, settings: Settings) -> int:
    """Promote the version of `arguments.number`; None: go back to the one promoted before."""
    from llmos_stream.broker import Topics
    from llmos_stream.registry import promote, roll_back

    topics, number = Topics(settings.federation.name), arguments.number

    async def change(broker: "Broker", offload: Offload) -> "Promotion":
        if number is None:
            return await roll_back(broker, topics, settings.registry, offload)
        return await promote(broker, topics, settings.registry, number, offload)

    now = asyncio.run(_connected(settings, change))
    before = f"; `versions rollback` goes back to {now.history[-1]}" if now.history else ""
    answer(arguments, asdict(now), f"version {now.version} is promoted{before}")
    return 0


def run_export(arguments: argparse.Namespace, settings: Settings) -> int:
    """Write a version, by default the newest, as a file: from the log, or else from the registry where there is one."""
    if arguments.to is not None:
        check_target(arguments.to)
    path, found, tensors, digest, source = asyncio.run(
        _connected(settings, lambda broker, offload: _export(broker, offload, settings, arguments.number, arguments.to))
    )
    written = {"file": str(path), "version": found, "tensors": tensors, "weights_digest": digest}
    answer(arguments, written, f"wrote version {found}, {tensors} tensors, {source}to {path}")
    return 0


async def find_in_log(index: "VersionIndex", settings: Settings, number: int | None) -> "LocatedVersion":
    """Return a version, by default the newest.

    Raises:
        NotFound: The log does not hold it.
    """
    found = await index.newest() if number is None else await index.find(number)
    if found is not None:
        return found
    oldest, newest = await index.oldest(), await index.newest()
    if oldest is None or newest is None:
        raise NotFound(nothing_in_log(settings))
    raise NotFound(f"version {number} is not in the log, which holds {oldest.head.number} to {newest.head.number}")


def nothing_in_log(settings: Settings) -> str:
    """Say that the log holds no version."""
    return f"federation {settings.federation.name} has no versions in the log; is its aggregator running?"


async def _connected(settings: Settings, work: Callable[["Broker", Offload], Awaitable[T]]) -> T:
    from llmos_stream.broker import connect

    async with connect(settings.broker) as broker, Offload(settings.runtime.workers) as offload:
        return await work(broker, offload)


async def _export(
    broker: "Broker", offload: Offload, settings: Settings, number: int | None, to: Path | None
) -> tuple[Path, int, int, str, str]:
    """Where it was written, its number, how many tensors, the digest of its weights, and `from the registry `."""
    from llmos_stream.registry import file_metadata

    try:
        version = await _version(broker, offload, settings, number)
    except (NotFound, TopicMissing) as error:
        return *await _export_archived(offload, settings, number, to, error), "from the registry "
    number, digest = version.head.number, version.head.weights_digest
    path = to or _default_path(settings.federation.name, number)
    metadata = file_metadata(settings.federation.name, number, digest)
    tensors = await offload.run(write_weights, version, path, metadata)
    return path, number, tensors, digest.hex(), ""


async def _version(broker: "Broker", offload: Offload, settings: Settings, number: int | None) -> "Version":
    """A version with its weights, from the log. Raises NotFound where they are not there, or cannot be read."""
    from llmos_stream.broker import Topics
    from llmos_stream.log import Replica, version_index

    topic = Topics(settings.federation.name).models
    async with version_index(broker, topic) as index:
        found = await find_in_log(index, settings, number)
        at = await index.stands_on(found)
    where = f"version {found.head.number} at {topic} offset {found.offset}"
    if at is None:
        raise NotFound(f"{where} stands on a full version that is no longer in the log")
    async with broker.reader([topic], start="latest", check_crcs=False) as reader:
        try:
            return await Replica(reader, settings.wire, offload).move_to(at, _FETCH_SECONDS)
        except OffsetGone:
            raise NotFound(f"{where} has just been deleted") from None
        except Rejected as error:
            raise NotFound(f"{where} cannot be read: {error}") from None


async def _export_archived(
    offload: Offload, settings: Settings, number: int | None, to: Path | None, why_not: LlmosError
) -> tuple[Path, int, int, str]:
    """As `_export`, from the registry. `why_not` says why not from the log, and is all there is to say without one."""
    from llmos_stream.registry import open_store

    if settings.registry.url is None:
        raise why_not
    store = open_store(settings.registry, settings.federation.name)
    held = await offload.run(store.numbers)
    if not held or (number is not None and number not in held):
        raise NotFound(f"{why_not}; the registry holds {_listed(held)}")
    entry = await offload.run(store.entry, held[-1] if number is None else number)
    path = to or _default_path(settings.federation.name, entry.version)
    await offload.run(write_file, store.pieces(entry), path)
    return path, entry.version, len(entry.layout.tensors), entry.weights_digest.hex()


def _listed(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    named = ", ".join(map(str, numbers[-_NAMED:]))
    return named if len(numbers) <= _NAMED else f"{len(numbers)} versions, the newest {named}"


def _default_path(federation: str, number: int) -> Path:
    return Path(f"{federation}-v{number}.safetensors")
