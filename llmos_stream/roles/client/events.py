"""What a client tells the federation of itself."""

from llmos_stream.errors import Rejected
from llmos_stream.log.events import event
from llmos_stream.types import Event, EventKind, Role, UpdateHead

ROLE = Role.CLIENT


def joined(client_id: str, num_examples: int | None) -> Event:
    return event(EventKind.CLIENT_JOINED, ROLE, client_id=client_id, num_examples=num_examples)


def left(client_id: str, reason: str, updates: int) -> Event:
    return event(EventKind.CLIENT_LEFT, ROLE, client_id=client_id, reason=reason, updates=updates)


def update_sent(
    head: UpdateHead, *, raw_bytes: int, sent_bytes: int, train_seconds: float | None, encode_seconds: float | None
) -> Event:
    return event(
        EventKind.UPDATE_SENT,
        ROLE,
        client_id=head.client_id,
        sequence=head.sequence,
        base_version=head.base_version,
        num_examples=head.num_examples,
        codec=head.codec.label,
        raw_bytes=raw_bytes,
        sent_bytes=sent_bytes,
        train_seconds=train_seconds,
        encode_seconds=encode_seconds,
        metrics=dict(head.metrics),
    )


def update_rejected(client_id: str, sequence: int | None, error: Rejected) -> Event:
    """Refused by the client itself. No sequence: it was not even encoded."""
    return event(
        EventKind.UPDATE_REJECTED,
        ROLE,
        client_id=client_id,
        sequence=sequence,
        reason=str(error.reason),
        detail=error.detail,
    )
