"""What spans say of updates and versions, and which span each message comes of that is being read."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager

from llmos_stream.broker import Record
from llmos_stream.telemetry.tracing import Attribute, Span, TraceParent, span, traceparent_of, tracing
from llmos_stream.types import UpdateHead, VersionHead

_MOST = 4096


def update_attributes(head: UpdateHead) -> dict[str, Attribute]:
    """What spans say of an update."""
    return {
        "client_id": head.client_id,
        "sequence": head.sequence,
        "base_version": head.base_version,
        "codec": head.codec.label,
        "bytes": head.payload_size,
    }


def update_span(client_id: str, base_version: int, came: TraceParent | None) -> AbstractContextManager[Span]:
    """Around all that a client does for one update; linked to the span of the version that it begins with."""
    about: dict[str, Attribute] = {"client_id": client_id, "base_version": base_version}
    return span("client.update", about, links=() if came is None else (came,))


def version_attributes(head: VersionHead) -> dict[str, Attribute]:
    """What spans say of a version."""
    return {"version": head.number, "codec": head.codec.label, "bytes": head.payload_size}


class SpanContexts:
    """Remembers the spans in the headers of one topic's records until their messages are whole, the newest of them.

    Costs nothing where nobody traces.
    """

    def __init__(self) -> None:
        self._came: OrderedDict[tuple[int, int], TraceParent] = OrderedDict()

    def note(self, records: Iterable[Record]) -> None:
        """Look at records that were read."""
        if not tracing():
            return
        for record in records:
            if (came := traceparent_of(record.headers)) is not None:
                self._came[record.partition, record.offset] = came
                if len(self._came) > _MOST:
                    self._came.popitem(last=False)

    def take(self, partition: int, offset: int) -> TraceParent | None:
        """The span that the message which begins there was sent from, where it is known."""
        return self._came.pop((partition, offset), None)
