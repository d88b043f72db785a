"""How a role writes to `<f>.events`."""

from time import time_ns

from llmos_stream.broker import Producer
from llmos_stream.telemetry.event_metrics import OWN
from llmos_stream.types import Event, EventKind
from llmos_stream.wire import dump_event


def now_ms() -> int:
    return time_ns() // 1_000_000


def event(kind: EventKind, role: str, **data: object) -> Event:
    return Event(kind, role, now_ms(), data)


async def emit(producer: Producer, topic: str, entry: Event) -> None:
    """Write one event, keyed by its client where it has one and by the role otherwise, and count it."""
    await producer.send(topic, dump_event(entry), key=event_key(entry))
    OWN.observe(entry)


def event_key(entry: Event) -> bytes:
    client = entry.data.get("client_id")
    return (client if isinstance(client, str) else entry.role).encode()
