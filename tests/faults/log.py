"""What the log holds of a run, read from its beginning, as the judge wants it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from torch import Tensor

from llmos_stream.broker import Broker, Record, Topics
from llmos_stream.codec import decode
from llmos_stream.config import Settings
from llmos_stream.log.versions import Version
from llmos_stream.types import UpdateHead, VersionHead, elements_in
from llmos_stream.wire import Assembler, Message
from tests.federation import decoded_versions

_PENDING_BYTES = 1 << 28
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sending:
    """An update as it lies in the log; the same one may lie there more than once."""

    head: UpdateHead
    delta: Tensor

    @property
    def identity(self) -> tuple[str, int]:
        return self.head.client_id, self.head.sequence

    @property
    def name(self) -> tuple[str, int]:
        """Its client's name and its number, as the journal has it."""
        return self.head.client_id, int(self.head.metrics["n"])

    @property
    def elements(self) -> slice:
        """Those of the flat vector that it is of."""
        return elements_of(self.head)


def elements_of(head: UpdateHead | VersionHead) -> slice:
    """The elements of the flat vector that an update is of, or that a version has moved."""
    return slice(None) if head.range is None else slice(*head.range)


@dataclass(frozen=True, slots=True)
class Logged:
    """Versions in the order of the log, updates by partition and first offset, quarantine, the newest pointer."""

    versions: Sequence[Version]
    updates: Mapping[tuple[int, int], Sending]
    refused: Sequence[Mapping[str, Any]]
    latest: int | None


async def read_log(broker: Broker, settings: Settings, numel: int) -> Logged:
    topics = Topics(settings.federation.name)
    async with broker.reader([topics.models], start="earliest") as reader:
        versions = [
            replace(version, weights=version.weights.clone())
            async for version in decoded_versions(reader, settings.wire)
        ]
    latest = None
    for record in await _records(broker, topics.control):
        if record.key == b"latest" and record.value is not None:
            latest = int(orjson.loads(record.value)["version"])
    updates: dict[tuple[int, int], Sending] = {}
    assembler = Assembler(lambda _: None, max_pending_bytes=_PENDING_BYTES, max_idle_seconds=float("inf"))
    for record in await _records(broker, topics.updates):
        place = {"partition": record.partition, "offset": record.offset}
        for outcome in assembler.push(record.value or b"", key=record.key, now=0.0, **place):
            if isinstance(outcome, Message) and isinstance(outcome.head, UpdateHead):
                delta = decode(outcome.parts, outcome.head.codec, elements_in(outcome.head, numel))
                updates[outcome.partition, outcome.first_offset] = Sending(outcome.head, delta)
    refused = [orjson.loads(record.value or b"{}") for record in await _records(broker, topics.quarantine)]
    return Logged(versions, updates, refused, latest)


async def _records(broker: Broker, topic: str) -> list[Record]:
    found: list[Record] = []
    async with broker.reader([topic], start="earliest") as reader:
        while await reader.lag() > 0:
            found += await reader.poll(_POLL_SECONDS)
    return found
