"""`<f>.control` as everyone sees it: the newest version, who aggregates, and whether the run has ended."""

import logging

import orjson

from llmos_stream.broker import Reader, Record
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.log.stream import RecordStream, foreign
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Shutdown
from llmos_stream.wire.control import (
    AGGREGATOR,
    LATEST,
    PAUSED,
    PROMOTED,
    RUN,
    SEQUENCES,
    STATE,
    Checkpoint,
    Leader,
    Pointer,
    Promotion,
    RunEnd,
    load_checkpoint,
    load_latest,
    load_leader,
    load_paused,
    load_promotion,
    load_run_end,
)

__all__ = ["Checkpoint", "ControlView", "Leader", "Pointer", "Promotion", "RunEnd"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_CATCH_UP_SECONDS = 60.0
_HEARING_SECONDS = 0.05
_HEARINGS = 8


class ControlView:
    """Follows `<f>.control` through a reader that starts at the beginning.

    `sequences` stays empty unless they are asked for: they grow with the clients, and only an
    aggregator needs them.
    """

    def __init__(self, reader: Reader, *, with_sequences: bool = False, clock: Clock = SYSTEM_CLOCK) -> None:
        self._stream = RecordStream(reader, clock=clock)
        self._clock = clock
        self._with_sequences = with_sequences
        self.sequences: dict[str, list[int]] = {}
        self.latest: Pointer | None = None
        self.finished: RunEnd | None = None
        self.checkpoint: Checkpoint | None = None
        self.leader: Leader | None = None
        self.promoted: Promotion | None = None
        self.paused = False
        self.beats = 0
        """How often the leader has been heard. One that was superseded is not listened to."""

    async def catch_up(self, timeout_seconds: float = _CATCH_UP_SECONDS) -> None:
        """Read what is there now. Raises BrokerUnavailable when that takes longer than the time-out."""
        deadline = self._clock.monotonic() + timeout_seconds
        while not await self._stream.at_end():
            if self._clock.monotonic() > deadline:
                raise BrokerUnavailable(f"the control topic could not be read within {timeout_seconds:g} s")
            await self.poll(_POLL_SECONDS)

    async def hear(self) -> None:
        """Take in what has come while nobody listened. Raises as `poll` does.

        It does not ask where the topic ends: on Kafka that answer would wait behind the fetch under way, for half a
        second. What a fetch has brought is taken, then what the next brings at once.
        """
        patience = 0.0
        for _ in range(_HEARINGS):
            if not await self.poll(patience):
                return
            patience = _HEARING_SECONDS

    async def poll(self, timeout_seconds: float) -> int:
        """Take in what comes; how many records.

        Raises BrokerUnavailable when nothing has come for long and nobody answers.
        """
        records = await self._stream.poll(timeout_seconds)
        for record in records:
            self._apply(record)
        return len(records)

    async def newer_than(self, version: int | None, seconds: float, shutdown: Shutdown) -> None:
        """Wait for a version above `version`, the end of the run, the shutdown or the time-out."""
        deadline = self._clock.monotonic() + seconds
        await self.poll(0)
        while not (shutdown.requested or self.finished or self._is_newer(version)):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            await self.poll(min(left, _POLL_SECONDS))

    def drop_sequences(self) -> dict[str, list[int]]:
        """Give `sequences` away and collect no more."""
        taken, self.sequences, self._with_sequences = self.sequences, {}, False
        return taken

    def _is_newer(self, version: int | None) -> bool:
        return self.latest is not None and (version is None or self.latest.version > version)

    def _apply(self, record: Record) -> None:
        try:
            if record.key is not None and record.key.startswith(SEQUENCES):
                self._apply_sequences(record.key.removeprefix(SEQUENCES).decode(), record.value)
                return
            if record.value is None:
                return
            value = orjson.loads(record.value)
            if record.key == LATEST:
                self.latest = load_latest(value)
            elif record.key == STATE:
                self.checkpoint = load_checkpoint(value)
            elif record.key == AGGREGATOR:
                self._apply_leader(load_leader(value))
            elif record.key == PROMOTED:
                self.promoted = load_promotion(value)
            elif record.key == PAUSED:
                self.paused = load_paused(value)
            elif record.key == RUN:
                self.finished = load_run_end(value) or self.finished
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            # A setting that cannot be read must not stop a role that can go on with the last good one.
            foreign(record.topic, record.offset, "it is no control record")

    def _apply_leader(self, leader: Leader) -> None:
        if self.leader is None or leader.term >= self.leader.term:
            self.leader = leader
            self.beats += 1

    def _apply_sequences(self, client_id: str, value: bytes | None) -> None:
        if not self._with_sequences:
            return
        self.sequences.pop(client_id, None)
        if value is not None:
            self.sequences[client_id] = [int(number) for number in orjson.loads(value)]
