"""`llmos-stream inspect`: what a record or a message says, for a person."""

import argparse
import asyncio
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import orjson
from rich.console import Console

from llmos_stream.cli.common import Commands, add_command, print_json
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, NotFound, Rejected
from llmos_stream.types import TopicKind

if TYPE_CHECKING:
    from llmos_stream.broker import Reader, Record, TopicPartition

_TOPICS = tuple(map(str, TopicKind))
_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.5


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "inspect",
        _run,
        text="decode a record of a federation's topics, or a frame in a file",
        sections=("federation", "broker", "wire"),
        examples=(
            "  llmos-stream inspect updates --offset 12\n"
            "  llmos-stream inspect quarantine --last 3 --json\n"
            "  llmos-stream inspect frame.bin"
        ),
    )
    parser.add_argument("source", help=f"a file, or one of the topics {', '.join(_TOPICS)}")
    parser.add_argument("--partition", type=int, default=0, help="partition of the topic (default: 0)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--offset", type=int, help="offset of the record; default: the oldest one kept")
    which.add_argument("--last", type=int, metavar="N", help="show the newest N records, the newest last")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.source in _TOPICS:
        records = asyncio.run(
            _from_topic(settings, arguments.source, arguments.partition, arguments.offset, arguments.last)
        )
        found = [_from_record(record) for record in records]
    else:
        found = [_from_file(Path(arguments.source))]
    for item in found:
        if arguments.json:
            print_json(item)
        else:
            Console(highlight=True).print_json(orjson.dumps(item).decode())
    return 0


def _from_file(path: Path) -> dict[str, object]:
    try:
        data = path.read_bytes()
    except OSError as error:
        said = f"cannot read {path}: {error.strerror or error}; or name a topic ({', '.join(_TOPICS)})"
        raise (NotFound if isinstance(error, FileNotFoundError) else ConfigError)(said) from None
    try:
        return _explain(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


async def _from_topic(
    settings: Settings, name: str, partition: int, offset: int | None, last: int | None
) -> list["Record"]:
    from llmos_stream.broker import TopicPartition, Topics, connect

    topic = f"{Topics(settings.federation.name).federation}.{name}"
    at = TopicPartition(topic, partition)
    if offset is not None and offset < 0:
        raise ConfigError(f"--offset: {offset} is below 0")
    if last is not None and last < 1:
        raise ConfigError(f"--last: {last} is below 1")
    async with connect(settings.broker) as broker, broker.reader([topic], start="earliest") as reader:
        if at not in reader.partitions:
            raise NotFound(f"--partition: {topic} has {len(reader.partitions)}, counted from 0, not {partition}")
        if last is not None:
            found = await _newest(reader, at, last)
        else:
            if offset is not None:
                reader.seek(at, offset)
            found = await _read(reader, at, 1)
    if not found:
        raise NotFound(f"{topic} has no record at or after offset {offset or 0} in partition {partition}")
    return found


async def _newest(reader: "Reader", at: "TopicPartition", count: int) -> list["Record"]:
    """The last `count` records. The ends of transactions take up offsets too, so it may have to go further back."""
    first, end = await reader.position(at), (await reader.end_offsets())[at]
    span = 2 * count
    while True:
        begin = max(first, end - span)
        reader.seek(at, begin)
        found = await _read(reader, at, end - begin)
        if len(found) >= count or begin == first:
            return found[-count:]
        span *= 2


async def _read(reader: "Reader", at: "TopicPartition", most: int) -> list["Record"]:
    """The next records of a partition: up to `most`, or to its end."""
    found: list[Record] = []
    deadline = monotonic() + _PATIENCE_SECONDS
    while len(found) < most and monotonic() < deadline and await reader.position(at) < (await reader.end_offsets())[at]:
        if records := await reader.poll(_POLL_SECONDS):
            found += [record for record in records if record.partition == at.partition]
            deadline = monotonic() + _PATIENCE_SECONDS
    return found[:most]


def _from_record(record: "Record") -> dict[str, object]:
    from llmos_stream.log.stream import value_of

    found: dict[str, object] = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    found["key"] = None if record.key is None else record.key.decode(errors="replace")
    try:
        return found | _explain(record.value)
    except ConfigError as error:
        # What a stranger wrote to the topic is a find, not a mistake of whoever looks at it.
        return found | {"bytes": len(value_of(record)), "note": str(error)}


def _explain(data: bytes | None) -> dict[str, object]:
    """A chunk, a whole message, or JSON."""
    from llmos_stream.wire import describe, read_chunk, unpack_prelude

    if data is None:
        return {"tombstone": True}
    if not data:
        raise ConfigError("there is nothing in it")
    if data[:1] in (b"{", b"["):
        try:
            return {"value": orjson.loads(data)}
        except orjson.JSONDecodeError:
            pass
    found: dict[str, object] = {"bytes": len(data)}
    body = memoryview(data)
    try:
        chunk = read_chunk(data)
    except Rejected as not_a_chunk:
        found["chunk"] = None
        reason = not_a_chunk.detail
    else:
        found["chunk"] = {"message_id": chunk.message_id.hex(), "index": chunk.index, "count": chunk.count}
        body, reason = memoryview(chunk.body), "only a message's first chunk has its head"
        if chunk.index:
            return found | {"head": None, "note": reason}
    try:
        prelude = unpack_prelude(body)
    except Rejected as error:
        raise ConfigError(f"neither a chunk ({reason}) nor a frame ({error.detail})") from None
    if prelude is None:
        if found["chunk"] is None:
            raise ConfigError("a frame that is cut off before the end of its head")
        return found | {"head": None, "note": "the head goes on in the next chunk"}
    return found | {"head": describe(prelude.head, signature=prelude.signature)}
