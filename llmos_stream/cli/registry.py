"""`llmos-stream archive`, and the actions of `llmos-stream versions` that know the registry."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.export import check_folder, check_target, write_folder, write_state, write_weights
from llmos_stream.cli.process import federation_of, run_connected
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import BROKER, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.log import Promotion
    from llmos_stream.registry import KeptVersion

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
        (check_folder if arguments.adapter or arguments.merged else check_target)(arguments.to)
    return asyncio.run(_connected(settings, lambda broker, offload: _export(arguments, settings, broker, offload)))


async def _connected(settings: Settings, work: Callable[["Broker", Offload], Awaitable[T]]) -> T:
    from llmos_stream.broker import connect

    async with connect(settings.broker) as broker, Offload(settings.runtime.workers) as offload:
        return await work(broker, offload)


async def _export(arguments: argparse.Namespace, settings: Settings, broker: "Broker", offload: Offload) -> int:
    from llmos_stream.registry import file_metadata, find_version

    federation = federation_of(broker, settings, offload)
    version = await find_version(federation, settings.registry, arguments.number)
    if arguments.adapter or arguments.merged:
        return await _export_folder(arguments, settings, version, offload)
    number, path = version.number, arguments.to or Path(f"{federation.name}-v{version.number}.safetensors")
    metadata = file_metadata(federation.name, number, version.digest)
    if arguments.complete:
        tensors = await offload.run(write_state, version, path, metadata, settings)
    else:
        tensors = await offload.run(write_weights, version, path, metadata)
    written = {"file": str(path), "version": number, "tensors": tensors, "weights_digest": version.digest.hex()}
    source = "from the registry " if version.archived else ""
    answer(arguments, written, f"wrote version {number}, {tensors} tensors, {source}to {path}")
    return 0


async def _export_folder(
    arguments: argparse.Namespace, settings: Settings, version: "KeptVersion", offload: Offload
) -> int:
    form, number = "merged" if arguments.merged else "adapter", version.number
    if arguments.rank is not None and arguments.rank < 1:
        raise ConfigError(f"--rank: {arguments.rank} is not 1 or more")
    path = arguments.to or Path(f"{settings.federation.name}-v{number}-{form}")
    check_folder(path)
    work = partial(write_folder, merged=arguments.merged, rank=arguments.rank)
    tensors, error = await offload.run(work, version, path, settings)
    written = {"folder": str(path), "version": number, "tensors": tensors, "error": error}
    left_out = f"; {error:.2%} of what was added to the base is not in it" if error else ""
    answer(arguments, written, f"wrote version {number}, {tensors} tensors, to the folder {path}{left_out}")
    return 0
