"""`<f>.control` as everyone sees it: the newest version's place in the log, and whether the run has ended.

Records are JSON. Keys and their values:

    latest  {"version": int, "partition": int, "offset": int}   where the newest full version begins
    run     {"state": "finished", "reason": str, "detail": str, "version": int}
    sequences/CLIENT  [highest, version, words...]              which of a client's updates were folded; a tombstone
                                                                once any repeat of it would be too stale
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import orjson

from llmos_stream.broker import Reader, Record
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.runtime import Shutdown

log = logging.getLogger(__name__)

LATEST = b"latest"
RUN = b"run"
_SEQUENCES = b"sequences/"
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a version begins in `<f>.models`."""

    version: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Why and with which version the run has ended."""

    reason: str
    detail: str
    version: int


def dump_latest(pointer: Pointer) -> bytes:
    return orjson.dumps({"version": pointer.version, "partition": pointer.partition, "offset": pointer.offset})


def dump_run_end(end: RunEnd) -> bytes:
    return orjson.dumps({"state": "finished", "reason": end.reason, "detail": end.detail, "version": end.version})


def sequences_key(client_id: str) -> bytes:
    return _SEQUENCES + client_id.encode()


def dump_sequences(window: Sequence[int] | None) -> bytes | None:
    """A client's window (see `core.SequenceWindow.dump`), or the tombstone of one that is forgotten."""
    return None if window is None else orjson.dumps(list(window))


class ControlView:
    """Follows `<f>.control` through a reader that starts at the beginning.

    `sequences` stays empty unless they are asked for: they grow with the clients, and only an
    aggregator needs them.
    """

    def __init__(self, reader: Reader, *, with_sequences: bool = False) -> None:
        self._reader = reader
        self._with_sequences = with_sequences
        self.sequences: dict[str, list[int]] = {}
        self.latest: Pointer | None = None
        self.finished: RunEnd | None = None

    async def catch_up(self, timeout_seconds: float) -> None:
        """Read what is there now. Raises BrokerUnavailable when that takes longer than the time-out."""
        deadline = monotonic() + timeout_seconds
        while await self._reader.lag() > 0:
            if monotonic() > deadline:
                raise BrokerUnavailable(f"the control topic could not be read within {timeout_seconds:g} s")
            await self.poll(_POLL_SECONDS)

    async def poll(self, timeout_seconds: float) -> None:
        for record in await self._reader.poll(timeout_seconds):
            self._apply(record)

    async def newer_than(self, version: int | None, seconds: float, shutdown: Shutdown) -> None:
        """Wait for a version above `version`, the end of the run, the shutdown or the time-out."""
        deadline = monotonic() + seconds
        await self.poll(0)
        while not (shutdown.requested or self.finished or self._is_newer(version)):
            left = deadline - monotonic()
            if left <= 0:
                return
            await self.poll(min(left, _POLL_SECONDS))

    def _is_newer(self, version: int | None) -> bool:
        return self.latest is not None and (version is None or self.latest.version > version)

    def _apply(self, record: Record) -> None:
        try:
            if record.key is not None and record.key.startswith(_SEQUENCES):
                self._apply_sequences(record.key.removeprefix(_SEQUENCES).decode(), record.value)
                return
            if record.value is None:
                return
            value = orjson.loads(record.value)
            if record.key == LATEST:
                self.latest = Pointer(int(value["version"]), int(value["partition"]), int(value["offset"]))
            elif record.key == RUN and value["state"] == "finished":
                self.finished = RunEnd(str(value["reason"]), str(value["detail"]), int(value["version"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            # A setting that cannot be read must not stop a role that can go on with the last good one.
            log.warning("ignored a control record that cannot be read, at offset %d", record.offset)

    def _apply_sequences(self, client_id: str, value: bytes | None) -> None:
        if not self._with_sequences:
            return
        self.sequences.pop(client_id, None)
        if value is not None:
            self.sequences[client_id] = [int(number) for number in orjson.loads(value)]
