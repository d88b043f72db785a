"""Chunks back into messages, as a pure state machine: records in, outcomes out, no clock of its own.

A message is known by its partition, its key and its message id, so that nobody can write into another's. What it claims
(count, sizes) is only ever compared, never allocated: what is held are the records that really came, up to a limit, in
stores that the caller chooses.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.types import Part
from llmos_stream.wire.chunks import Chunk, read_chunk
from llmos_stream.wire.outcomes import Message, Outcome, Refusal
from llmos_stream.wire.pending import HEAD_BYTES_KEPT, Admit, Pending
from llmos_stream.wire.store import MemoryStore, Store

_SETTLED_KEPT = 16384

_Stream = tuple[int, bytes | None, bytes]


class _User:
    """What one key holds: its messages, the longest idle first, and their bytes."""

    __slots__ = ("bytes", "streams")

    def __init__(self) -> None:
        self.streams: OrderedDict[_Stream, None] = OrderedDict()
        self.bytes = 0


class Assembler:
    """Puts the messages of one topic together again, many at a time.

    `admit` is called with each prelude as soon as it is there, its head not parsed yet, and raises Rejected to refuse
    the message before its payload is kept. At most `max_pending_bytes` (of chunks, with RECORD_COST for each) and
    `max_pending_messages` are held between two calls. Past that, the longest idle message goes of the key that holds
    most; a store that cannot keep more counts as full. Of one key at most `max_key_messages` and `max_key_bytes` are
    held; past that its longest idle ones go for its newest, which may have all the room that there is. Times are
    seconds of any clock that does not run backwards.

    `store` makes what keeps one message's payload; it is closed when the message is given up, and goes
    with the Message when it is whole. What it raises is raised by `push`. `hashes` computes the
    payload's digest while the chunks come (see `Message.payload_digest`). For one thread at a time.
    """

    def __init__(
        self,
        admit: Admit,
        max_pending_bytes: int,
        max_pending_messages: int = 4096,
        max_idle_seconds: float = 60.0,
        max_seconds: float = math.inf,
        *,
        max_key_messages: int = 16,
        max_key_bytes: float = math.inf,
        store: Callable[[], Store] = MemoryStore,
        hashes: bool = False,
    ) -> None:
        if max_pending_bytes < 1 or max_pending_messages < 1 or max_idle_seconds <= 0:
            raise ValueError("the limits of an Assembler are above 0")
        self._admit = admit
        self._max_bytes = max_pending_bytes
        self._max_messages = max_pending_messages
        self._max_idle = max_idle_seconds
        self._max_seconds = max_seconds
        self._max_key_messages = max_key_messages
        self._max_key_bytes = max_key_bytes
        self._store = store
        self._hashes = hashes
        self._pending: OrderedDict[_Stream, Pending] = OrderedDict()  # longest idle first
        self._begun: OrderedDict[_Stream, float] = OrderedDict()  # oldest first
        self._users: dict[bytes | None, _User] = {}
        self._settled: OrderedDict[_Stream, None] = OrderedDict()  # no longer pending: later chunks are passed over
        self._bytes = 0

    @property
    def pending_messages(self) -> int:
        """Messages begun and not finished."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """What they hold, as counted against `max_pending_bytes`."""
        return self._bytes

    def low_water(self, partition: int) -> int | None:
        """The first offset of the oldest pending message there: nothing from it on may be committed.

        None where nothing is pending. Costs a look at each pending message.
        """
        return min((item.first_offset for item in self._pending.values() if item.partition == partition), default=None)

    def has_begun(self, partition: int, first_offset: int) -> bool:
        """Whether the message that begins there is pending."""
        return any((item.partition, item.first_offset) == (partition, first_offset) for item in self._pending.values())

    def push(self, value: Part, *, key: bytes | None, partition: int, offset: int, now: float) -> list[Outcome]:
        """Take the next record of a partition. Never raises for what the record holds.

        * Index 0 begins a message; where one is in progress or settled, it begins it anew (a resend).
        * An index already seen is passed over, and so is what is left of a message that was refused.
        * A gap refuses the message as MISSING_CHUNK; so does, once, a chunk whose message never began.
        * A count that changes, or more bytes or chunks than the head's payload has, is MALFORMED; too
          few bytes when all chunks are there is TRUNCATED.
        * A message larger than `max_pending_bytes` is TOO_LARGE. The head's own reasons are those of
          `unpack_prelude`, and what `admit` raised stands as it is.
        """
        try:
            chunk = read_chunk(value)
        except Rejected as error:
            start = bytes(value[:HEAD_BYTES_KEPT])
            return [Refusal(error.reason, error.detail, None, start, key, partition, offset)]
        outcomes: list[Outcome] = []
        outcome = self._take(chunk, key, partition, offset, now, outcomes)
        if outcome is not None:
            outcomes.append(outcome)
        user = self._users.get(key)
        while user is not None and len(user.streams) > 1 and self._is_over(user):
            outcomes.append(self._drop(next(iter(user.streams)), "given up for newer ones of the same key"))
        while self._bytes > self._max_bytes or len(self._pending) > self._max_messages:
            outcomes.append(self._make_room())
        return outcomes

    def expire(self, now: float) -> list[Outcome]:
        """Refuse as INCOMPLETE what has been idle or has gone on for too long. Push what has been read first."""
        outcomes: list[Outcome] = []
        while self._pending and now - next(iter(self._pending.values())).touched >= self._max_idle:
            outcomes.append(self._drop(next(iter(self._pending)), f"then none for {self._max_idle:g} s"))
        while self._begun and now - next(iter(self._begun.values())) >= self._max_seconds:
            outcomes.append(self._drop(next(iter(self._begun)), f"and no more within {self._max_seconds:g} s"))
        return outcomes

    def forget(self, partition: int) -> None:
        """Drop what is known of a partition, without outcomes: it will be read anew, here or elsewhere."""
        for stream in [stream for stream in self._pending if stream[0] == partition]:
            self._remove(stream)
        for stream in [stream for stream in self._settled if stream[0] == partition]:
            del self._settled[stream]

    def _take(
        self, chunk: Chunk, key: bytes | None, partition: int, offset: int, now: float, dropped: list[Outcome]
    ) -> Outcome | None:
        stream = (partition, key, chunk.message_id)
        if chunk.index == 0:
            self._remove(stream)
            self._pending[stream] = Pending(key, partition, offset, chunk.count, now, self._store, self._hashes)
            self._begun[stream] = now
            self._users.setdefault(key, _User()).streams[stream] = None
        pending = self._pending.get(stream)
        if pending is None:
            if stream in self._settled:
                return None
            self._settle(stream)
            detail = f"chunk {chunk.index} of {chunk.count} came without the beginning of its message"
            return Refusal(Reason.MISSING_CHUNK, detail, None, b"", key, partition, offset)
        try:
            return self._append(stream, pending, chunk, offset, now, dropped)
        except Rejected as error:
            self._remove(stream)
            self._settle(stream)
            return pending.refusal(error.reason, error.detail)

    def _append(
        self, stream: _Stream, pending: Pending, chunk: Chunk, offset: int, now: float, dropped: list[Outcome]
    ) -> Message | None:
        before = pending.held
        if not pending.append(chunk, now):
            return None
        self._bytes += pending.held - before
        user = self._users[pending.key]
        user.bytes += pending.held - before
        self._pending.move_to_end(stream)
        user.streams.move_to_end(stream)
        whole = pending.is_whole(chunk.body, self._admit, self._max_bytes)
        self._keep(stream, pending, chunk.body, dropped)
        if not whole:
            return None
        message = pending.message(offset)
        self._remove(stream)
        if pending.count > 1:  # a message of one chunk has no later ones to pass over
            self._settle(stream)
        return message

    def _keep(self, stream: _Stream, pending: Pending, body: memoryview, dropped: list[Outcome]) -> None:
        """Store a chunk, and give up others where there is no room left. Raises Rejected where that does not help."""
        while True:
            try:
                pending.keep(body)
                return
            except StateError as error:
                if self._largest() == stream:
                    raise Rejected(Reason.INCOMPLETE, f"given up to make room: {error}") from None
                dropped.append(self._make_room())

    def _is_over(self, user: _User) -> bool:
        return len(user.streams) > self._max_key_messages or user.bytes > self._max_key_bytes

    def _make_room(self) -> Refusal:
        return self._drop(self._largest(), "given up to make room")

    def _largest(self) -> _Stream:
        """The longest idle message of the key that holds most."""
        over = self._bytes > self._max_bytes or len(self._pending) <= self._max_messages
        user = max(self._users.values(), key=lambda user: user.bytes if over else len(user.streams))
        return next(iter(user.streams))

    def _drop(self, stream: _Stream, detail: str) -> Refusal:
        pending = self._pending[stream]
        self._remove(stream)
        self._settle(stream)
        return pending.refusal(Reason.INCOMPLETE, f"{pending.chunks} of {pending.count} chunks came, {detail}")

    def _remove(self, stream: _Stream) -> None:
        pending = self._pending.pop(stream, None)
        if pending is not None:
            self._bytes -= pending.held
            del self._begun[stream]
            user = self._users[pending.key]
            user.bytes -= pending.held
            del user.streams[stream]
            if not user.streams:
                del self._users[pending.key]
            pending.close()

    def _settle(self, stream: _Stream) -> None:
        self._settled[stream] = None
        self._settled.move_to_end(stream)
        if len(self._settled) > _SETTLED_KEPT:
            self._settled.popitem(last=False)
