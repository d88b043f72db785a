"""Whole messages as records, for tests of what reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos_stream.wire import (
    Assembler,
    MemoryStore,
    Message,
    Outcome,
    Prelude,
    Refusal,
    Store,
    message_id,
    pack_prelude,
    split,
)
from tests.wire.heads import update


def payload_of(size: int, seed: int = 0) -> bytes:
    return bytes((seed + index) % 251 for index in range(size))


def records(payload: bytes = b"hello", chunk_bytes: int = 64, sender: str = "c-1", sequence: int = 0) -> list[bytes]:
    """The record values of one update."""
    prelude = pack_prelude(update(client_id=sender, sequence=sequence, payload_size=len(payload)))
    return list(split(prelude, [payload], len(payload), message_id(sender, sequence), chunk_bytes))


def admit_all(prelude: Prelude) -> None:
    """Take every message."""


@dataclass
class Topic:
    """An assembler and the offsets and time that a reader would give it."""

    assembler: Assembler
    offset: int = 0
    now: float = 0.0

    def push(self, values: Sequence[bytes | memoryview], partition: int = 0) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for value in values:
            outcomes += self.assembler.push(value, key=b"k", partition=partition, offset=self.offset, now=self.now)
            self.offset += 1
        return outcomes


def topic(
    admit: Callable[[Prelude], object] = admit_all,
    max_pending_bytes: int = 1 << 20,
    max_pending_messages: int = 4096,
    max_idle_seconds: float = 60.0,
    store: Callable[[], Store] = MemoryStore,
    hashes: bool = False,
) -> Topic:
    return Topic(
        Assembler(admit, max_pending_bytes, max_pending_messages, max_idle_seconds, store=store, hashes=hashes)
    )


def only_message(outcomes: Sequence[Outcome]) -> Message:
    (outcome,) = outcomes
    assert isinstance(outcome, Message), outcome
    return outcome


def only_refusal(outcomes: Sequence[Outcome]) -> Refusal:
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal), outcome
    return outcome
