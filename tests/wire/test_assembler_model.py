"""Many senders, resends, repeats and losses in any order, against a model that keeps everything."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmos_stream.errors import Reason
from llmos_stream.storage.spool import Spools
from llmos_stream.types import UpdateHead
from llmos_stream.wire import RECORD_COST, MemoryStore, Message, Outcome, Refusal, Store
from tests.storage.aids import memory_left
from tests.wire.records import payload_of, records, topic

PARTITIONS, SENDERS, MAX_MESSAGES, IDLE_SECONDS = 2, 4, 5, 20
Sender = tuple[int, int]


def values_of(sender: int) -> list[bytes]:
    return records(payload_of(sender * 97, sender), 70 + sender, f"c-{sender}", sender)


VALUES = [values_of(sender) for sender in range(SENDERS)]


@dataclass
class Open:
    """A message in progress, as the model sees it."""

    first_offset: int
    touched: float
    records: list[bytes] = field(default_factory=list)


class ManySenders(RuleBasedStateMachine):
    """`next_index` is what each sender would send next; the model is `open` and `settled`."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = topic(
            max_pending_messages=MAX_MESSAGES, max_idle_seconds=IDLE_SECONDS, store=self.store(), hashes=True
        )
        self.next_index: dict[Sender, int] = {}
        self.open: dict[Sender, Open] = {}
        self.settled: set[Sender] = set()

    def store(self) -> Callable[[], Store]:
        return MemoryStore

    @rule(partition=st.integers(0, PARTITIONS - 1), sender=st.integers(0, SENDERS - 1), count=st.integers(1, 5))
    def send_on(self, partition: int, sender: int, count: int) -> None:
        for _ in range(count):
            index = self.next_index.get((partition, sender), 0)
            self.next_index[partition, sender] = (index + 1) % len(VALUES[sender])
            self._record((partition, sender), index)

    @rule(partition=st.integers(0, PARTITIONS - 1), sender=st.integers(0, SENDERS - 1))
    def lose_one(self, partition: int, sender: int) -> None:
        index = self.next_index.get((partition, sender), 0)
        self.next_index[partition, sender] = (index + 1) % len(VALUES[sender])

    @rule(partition=st.integers(0, PARTITIONS - 1), sender=st.integers(0, SENDERS - 1))
    def start_over(self, partition: int, sender: int) -> None:
        self.next_index[partition, sender] = 0

    @rule(partition=st.integers(0, PARTITIONS - 1), sender=st.integers(0, SENDERS - 1), index=st.integers(0, 9))
    def send_any(self, partition: int, sender: int, index: int) -> None:
        self._record((partition, sender), index % len(VALUES[sender]))

    @rule(seconds=st.integers(1, 15))
    def wait(self, seconds: int) -> None:
        self.topic.now += seconds
        idle = [who for who, item in self.open.items() if self.topic.now - item.touched >= IDLE_SECONDS]
        firsts = [self.open[who].first_offset for who in idle]
        assert self._incomplete(self.topic.assembler.expire(self.topic.now)) == firsts
        for who in idle:
            self._settle(who)

    @invariant()
    def low_water_and_size_are_those_of_the_model(self) -> None:
        assembler = self.topic.assembler
        for partition in range(PARTITIONS):
            firsts = [item.first_offset for who, item in self.open.items() if who[0] == partition]
            assert assembler.low_water(partition) == (min(firsts) if firsts else None)
        assert assembler.pending_messages == len(self.open)
        held = [len(value) - 32 + RECORD_COST for item in self.open.values() for value in item.records]
        assert assembler.pending_bytes == sum(held)

    def _record(self, who: Sender, index: int) -> None:
        """Push a record, and hold what comes out against what the model says must."""
        value, offset = VALUES[who[1]][index], self.topic.offset
        outcomes = self.topic.push([value], who[0])
        if index == 0:
            self.open.pop(who, None)
            self.open[who] = Open(offset, self.topic.now)
        elif who not in self.open:
            refused = [] if who in self.settled else [(Reason.MISSING_CHUNK, offset)]
            assert [(item.reason, item.offset) for item in outcomes if isinstance(item, Refusal)] == refused
            assert len(outcomes) == len(refused)
            self.settled.add(who)
            return
        item = self.open[who]
        if index < len(item.records):
            assert outcomes == []
        elif index > len(item.records):
            (refusal,) = outcomes
            assert isinstance(refusal, Refusal)
            assert (refusal.reason, refusal.offset) == (Reason.MISSING_CHUNK, item.first_offset)
            self._settle(who)
        else:
            item.records.append(value)
            item.touched = self.topic.now
            self.open[who] = self.open.pop(who)  # the model's order is the order of last touches
            if len(item.records) == len(VALUES[who[1]]):
                self._finished(who, item, offset, outcomes)
            elif len(self.open) > MAX_MESSAGES:
                longest_idle = next(iter(self.open))
                assert self._incomplete(outcomes) == [self.open[longest_idle].first_offset]
                self._settle(longest_idle)
            else:
                assert outcomes == []

    def _finished(self, who: Sender, item: Open, offset: int, outcomes: list[Outcome]) -> None:
        (message,) = outcomes
        assert isinstance(message, Message)
        assert isinstance(message.head, UpdateHead)
        assert message.head.client_id == f"c-{who[1]}"
        for _ in range(2):
            assert b"".join(message.parts) == payload_of(who[1] * 97, who[1])
        assert message.payload_digest == hashlib.sha256(payload_of(who[1] * 97, who[1])).digest()
        assert (message.partition, message.first_offset, message.last_offset) == (who[0], item.first_offset, offset)
        self._settle(who)

    def _settle(self, who: Sender) -> None:
        del self.open[who]
        self.settled.add(who)

    @staticmethod
    def _incomplete(outcomes: list[Outcome]) -> list[int]:
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        assert len(refusals) == len(outcomes)
        assert {refusal.reason for refusal in refusals} <= {Reason.INCOMPLETE}
        return [refusal.offset for refusal in refusals]


class ManySendersInAFile(ManySenders):
    """The same with a few bytes of memory for all, the rest in a file; everything comes back."""

    MEMORY = 1500

    def store(self) -> Callable[[], Store]:
        self.spools = Spools(self.MEMORY)
        return self.spools.new

    @invariant()
    def memory_is_held_by_what_is_pending_alone(self) -> None:
        if not self.open:
            assert memory_left(self.spools) == self.MEMORY

    def teardown(self) -> None:
        for partition in range(PARTITIONS):
            self.topic.assembler.forget(partition)
        assert memory_left(self.spools) == self.MEMORY


ManySenders.TestCase.settings = settings(deadline=None, max_examples=80, stateful_step_count=50)
ManySendersInAFile.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=50)
TestManySenders = ManySenders.TestCase
TestManySendersInAFile = ManySendersInAFile.TestCase
