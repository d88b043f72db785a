"""What one key may hold of an assembler: it cannot take another's room, place or message."""

from collections.abc import Sequence

from llmos_stream.errors import Reason, StateError
from llmos_stream.wire import Assembler, MemoryStore, Message, Outcome, Refusal
from tests.wire.records import admit_all, payload_of, records


class _Log:
    """Records of many keys, one after the other."""

    def __init__(self, assembler: Assembler) -> None:
        self.assembler = assembler
        self.offset = 0

    def push(self, key: str, values: Sequence[bytes], now: float = 0.0) -> list[Outcome]:
        found: list[Outcome] = []
        for value in values:
            found += self.assembler.push(value, key=key.encode(), partition=0, offset=self.offset, now=now)
            self.offset += 1
        return found


def _keys(outcomes: Sequence[Outcome]) -> list[str]:
    assert all(isinstance(outcome, Refusal) and outcome.reason is Reason.INCOMPLETE for outcome in outcomes)
    return [(outcome.key or b"").decode() for outcome in outcomes]


def test_many_beginnings_of_one_key_take_no_place_of_another() -> None:
    log = _Log(Assembler(admit_all, 1 << 20, max_pending_messages=64, max_key_messages=8))
    honest = records(payload_of(500), 64, "honest")
    assert log.push("honest", honest[:3]) == []
    dropped = [log.push("flood", records(payload_of(500), 64, "flood", number)[:1]) for number in range(1000)]
    assert set(_keys([item for found in dropped for item in found])) == {"flood"}
    assert log.assembler.pending_messages == 1 + 8
    (message,) = log.push("honest", honest[3:])
    assert isinstance(message, Message)


def test_the_bytes_of_one_key_are_bounded_and_its_newest_message_has_all_the_room() -> None:
    log = _Log(Assembler(admit_all, 1 << 20, max_key_bytes=20_000))
    dropped: list[Outcome] = []
    for number in range(9):
        dropped += log.push("heap", records(payload_of(9000), 1000, "heap", number)[:-1])
        assert log.assembler.pending_bytes <= 20_000
    assert len(dropped) == 9 - log.assembler.pending_messages
    assert set(_keys(dropped)) == {"heap"}
    large = records(payload_of(200_000), 1000, "large")
    *dropped, message = log.push("heap", large)
    assert set(_keys(dropped)) == {"heap"}
    assert log.assembler.pending_messages == 0
    assert isinstance(message, Message)


def test_the_key_that_holds_most_makes_room() -> None:
    log = _Log(Assembler(admit_all, 40_000))
    honest = records(payload_of(4000), 1000, "honest")
    log.push("honest", honest[:-1])
    dropped = [log.push("heap", records(payload_of(9000), 1000, "heap", number)[:-1]) for number in range(9)]
    assert set(_keys([item for found in dropped for item in found])) == {"heap"}
    (message,) = log.push("honest", honest[-1:])
    assert isinstance(message, Message)


def test_a_full_store_makes_room_and_raises_nothing() -> None:
    left = [10_000]

    class Disk(MemoryStore):
        held = 0

        def append(self, part: memoryview, /) -> None:
            if left[0] < len(part):
                raise StateError("no space left on device")
            left[0] -= len(part)
            self.held += len(part)
            super().append(part)

        def close(self) -> None:
            left[0] += self.held
            self.held = 0

    log = _Log(Assembler(admit_all, 1 << 20, store=Disk))
    honest = records(payload_of(3000), 500, "honest")
    log.push("honest", honest[:3])
    dropped: list[Outcome] = []
    for number in range(40):
        dropped += log.push("heap", records(payload_of(4000), 500, "heap", number)[:-1])
    assert dropped
    assert set(_keys(dropped)) == {"heap"}
    *dropped, message = log.push("honest", honest[3:])
    assert set(_keys(dropped)) <= {"heap"}
    assert isinstance(message, Message)
    (refusal,) = log.push("giant", records(payload_of(20_000), 5000, "giant"))[-1:]
    assert isinstance(refusal, Refusal)
    assert "no space left" in refusal.detail


def test_nobody_writes_into_anothers_message() -> None:
    log = _Log(Assembler(admit_all, 1 << 20))
    honest = records(payload_of(500), 64, "honest")
    log.push("honest", honest[:3])
    (refusal,) = log.push("thief", [honest[5]])  # the same message id
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.key) == (Reason.MISSING_CHUNK, b"thief")
    (message,) = log.push("honest", honest[3:])
    assert isinstance(message, Message)


def test_a_message_has_its_time_however_steadily_it_comes() -> None:
    log = _Log(Assembler(admit_all, 1 << 20, max_idle_seconds=10.0, max_seconds=60.0))
    slow = records(payload_of(2000), 64, "slow")
    for second in range(0, 60, 5):
        log.push("slow", [slow[second // 5]], now=float(second))
        assert log.assembler.expire(float(second)) == []
    assert log.assembler.low_water(0) == 0
    assert _keys(log.assembler.expire(60.0)) == ["slow"]
    assert log.assembler.low_water(0) is None
    assert log.push("slow", slow[12:13], now=60.0) == []  # what is left of it is passed over
