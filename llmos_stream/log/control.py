"""`<f>.control` as everyone sees it: the newest version, who aggregates, and whether the run has ended."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from llmos_stream.broker import Broker, Reader, Record, Topics
from llmos_stream.errors import BrokerUnavailable, Rejected, StateError
from llmos_stream.log.stream import RecordStream, foreign, go_on
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Shutdown
from llmos_stream.runtime.logs import Sparing
from llmos_stream.telemetry.process_metrics import FOREIGN
from llmos_stream.types import ClientOrder, ParticipationRules, TopicKind
from llmos_stream.wire.control import (
    AGGREGATOR,
    CLIENTS,
    FINISH,
    LATEST,
    MOST_TAKEOVERS,
    PARTICIPATION,
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
    load_order,
    load_participation,
    load_paused,
    load_promotion,
    load_run,
    load_sequences,
)
from llmos_stream.wire.fields import count, is_client_id

__all__ = ["Checkpoint", "ControlView", "Leader", "Pointer", "Promotion", "RunEnd"]

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())

CheckWindow = Callable[[Sequence[int]], object]
EVERYBODY = "*"
"""In place of a client, whose name it cannot be."""
_POLL_SECONDS = 0.5
_CATCH_UP_SECONDS = 60.0
_HEARING_SECONDS = 0.05
_HEARINGS = 8
_REMEMBERED = 16
_SPOILT_KEPT = 1024
_MOST_ORDERS = 1 << 16


@asynccontextmanager
async def open_control(
    broker: Broker,
    topics: Topics,
    *,
    sequences_of: str | None = None,
    check_window: CheckWindow = list,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator["ControlView"]:
    """The control topic, read to its present end."""
    async with broker.reader([topics.control], start="earliest") as reader:
        control = ControlView(reader, sequences_of=sequences_of, check_window=check_window, clock=clock)
        await control.catch_up()
        yield control


class ControlView:
    """Follows `<f>.control` through a reader that starts at the beginning.

    `sequences` stays empty unless they are asked for, those of one client or of EVERYBODY: they grow with the clients,
    and only an aggregator needs them all. `check_window` raises for numbers that are no window.
    `is_second`: another view in this process counts and logs foreign records.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        sequences_of: str | None = None,
        check_window: CheckWindow = list,
        clock: Clock = SYSTEM_CLOCK,
        is_second: bool = False,
    ) -> None:
        self._stream = RecordStream(reader, clock=clock, on_gap=go_on("control records"))
        self._clock = clock
        self._sequences_of = self._orders_of = sequences_of
        self._check_window = check_window
        self._is_second = is_second
        self._sequences_dropped = False
        self.sequences: dict[str, list[int]] = {}
        self.finished: RunEnd | None = None
        """How the run has ended, unless it goes on."""
        self.has_ended = False
        """Whether the run has ever ended, though it may have gone on."""
        self.asked_to_finish = False
        """Whether an operator wants the run ended, and it has not been since."""
        # What lies behind the newest ones may not be what they say: then those before count.
        self._pointers: deque[Pointer] = deque(maxlen=_REMEMBERED)
        self._checkpoints: deque[Checkpoint] = deque(maxlen=_REMEMBERED)
        self.leader: Leader | None = None
        self.promoted: Promotion | None = None
        self.paused = False
        self.participation = ParticipationRules()
        """Who may take part."""
        self.orders: dict[str, ClientOrder] = {}
        """What an operator wants, by client: of those clients whose sequences are asked for."""
        self.spoilt: set[bytes] = set()
        """Keys of the aggregator under which something lies that cannot be read, and hides what did: the topic is
        compacted."""
        self.begun = False
        """Whether a version has ever been announced, as far as anybody can tell."""
        self.beats = 0
        """How often the leader has been heard. One that was superseded is not listened to."""
        self.heard_at = clock.monotonic()
        """When that was last; when this view was opened, as long as it has not been."""

    @property
    def latest(self) -> Pointer | None:
        """Where the newest version is that has not turned out to be none."""
        return self._pointers[-1] if self._pointers else None

    @property
    def newest_kept(self) -> int | None:
        """The newest version that an aggregator wrote its state with, whether it is still there or not."""
        return max((kept.version for kept in self._checkpoints), default=None)

    def checkpoint_of(self, version: int) -> Checkpoint | None:
        """What an aggregator kept with this version, where it is one of the newest."""
        return next((kept for kept in reversed(self._checkpoints) if kept.version == version), None)

    @property
    def evaluations_moved(self) -> int | None:
        """The offset in `<f>.events` from which on evaluations come by `<f>.evaluations`.

        None where that is not known, as in the log of an older release.
        """
        newest = self._checkpoints[-1] if self._checkpoints else None
        return None if newest is None or newest.evaluations is None else newest.events

    def disown_unkept(self) -> None:
        """Pass over versions that were announced without the state that an aggregator writes with each."""
        while (pointer := self.latest) is not None and self._checkpoints:
            if self.checkpoint_of(pointer.version) is not None:
                return
            self.disown(pointer, "no aggregator's state was written with it")

    def disown(self, pointer: Pointer, why: str) -> None:
        """There is no such version of this run: the one before is the newest, until another is announced."""
        if pointer in self._pointers:
            FOREIGN.labels(TopicKind.CONTROL).inc()
            logger.warning("version %d is passed over: %s", pointer.version, why)
            self._pointers.remove(pointer)

    def went_on(self) -> None:
        """The run goes on after its end, as whoever has this view has just written."""
        self.finished, self.asked_to_finish = None, False

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
        """Give `sequences` away and collect no more. What cannot be one is `spoilt` still."""
        taken, self.sequences, self._sequences_dropped = self.sequences, {}, True
        return taken

    def _is_newer(self, version: int | None) -> bool:
        return self.latest is not None and (version is None or self.latest.version > version)

    def _apply(self, record: Record) -> None:
        key = record.key or b""
        self.begun = self.begun or key == LATEST
        try:
            if key.startswith(SEQUENCES):
                self._apply_sequences(key.removeprefix(SEQUENCES).decode(), record.value)
            elif key.startswith(CLIENTS):
                self._apply_order(key.removeprefix(CLIENTS).decode(), record.value)
            elif record.value is not None:
                self._apply_setting(key, orjson.loads(record.value))
            elif key in {LATEST, STATE}:
                raise ValueError("it takes away what was there")
        except (KeyError, TypeError, ValueError, AttributeError, Rejected, StateError) as error:
            # JSONDecodeError is a ValueError.
            # A setting that cannot be read must not stop a role that can go on with the last good one.
            if not self._is_second:
                foreign(record.topic, record.offset, f"it is no control record ({str(error)[:100]})")
            self._note_spoilt(key)

    def _apply_setting(self, key: bytes, value: Any) -> None:
        if key == LATEST:
            self._pointers.append(load_latest(value))
        elif key == STATE:
            self._checkpoints.append(load_checkpoint(value))
        elif key == AGGREGATOR:
            self._apply_leader(load_leader(value))
        elif key == PROMOTED:
            self.promoted = load_promotion(value)
        elif key == PAUSED:
            self.paused = load_paused(value)
        elif key == PARTICIPATION:
            self.participation = load_participation(value)
        elif key == RUN:
            self.finished, self.asked_to_finish = load_run(value), False
            self.has_ended = True
        elif key == FINISH:
            count(value, "time_ms")
            self.asked_to_finish = True

    def _note_spoilt(self, key: bytes) -> None:
        # Under the name of no client the aggregator has nothing, and could not read there what it wrote.
        name = key.removeprefix(SEQUENCES).decode(errors="replace")
        is_window = key.startswith(SEQUENCES) and is_client_id(name)
        if (key in {LATEST, STATE} or is_window) and len(self.spoilt) < _SPOILT_KEPT:
            self.spoilt.add(key)

    def _apply_leader(self, leader: Leader) -> None:
        known = 0 if self.leader is None else self.leader.term
        if not 0 < leader.term <= known + MOST_TAKEOVERS:
            raise ValueError(f"term {leader.term} after term {known}")
        if leader.term >= known:
            self.leader = leader
            self.beats += 1
            self.heard_at = self._clock.monotonic()

    def _apply_order(self, client_id: str, value: bytes | None) -> None:
        if self._orders_of not in {EVERYBODY, client_id}:
            return
        if value is None:
            self.orders.pop(client_id, None)
        elif not is_client_id(client_id) or (client_id not in self.orders and len(self.orders) >= _MOST_ORDERS):
            raise ValueError("it orders nobody")
        else:
            self.orders[client_id] = load_order(orjson.loads(value))

    def _apply_sequences(self, client_id: str, value: bytes | None) -> None:
        if self._sequences_of not in {EVERYBODY, client_id}:
            return
        window = None if value is None else load_sequences(orjson.loads(value))
        if window is not None:
            self._check_window(window)
        if self._sequences_dropped:
            return
        if window is None:
            self.sequences.pop(client_id, None)
        else:
            self.sequences[client_id] = window
