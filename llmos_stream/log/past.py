"""What the log says has happened until now, for whoever was not there.

Events are deleted by age and versions by size. Where the first events are gone, the manifests of the versions that are
left say which updates were folded. So a fold that takes each identity once sees as much as the log still holds.
"""

from collections.abc import AsyncIterator, Iterator

from llmos_stream.log.events import folded_data, published_data, read_events
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.types import Event, EventKind, Role, VersionHead
from llmos_stream.wire.control import RunEnd
from llmos_stream.wire.events import whole


async def past_events(federation: Federation, end: RunEnd | None) -> AsyncIterator[Event]:
    """Give all that has happened. `end` is the end of the run, which stays in the log for longer than its event.

    Raises:
        TopicMissing: There is no federation yet.
        BrokerUnavailable: The broker does not answer.
    """
    published, ended, time_ms = False, False, 0
    async for event in missing_events(federation):
        yield event
        published, time_ms = True, event.time_ms
    async for event in read_events(federation.broker, federation.topics):
        yield event
        ended = event.kind is EventKind.RUN_FINISHED or (ended and event.kind is not EventKind.RUN_RESUMED)
        time_ms = max(time_ms, event.time_ms)
    if end is not None and not ended and (published or time_ms):
        data = {"reason": end.reason, "detail": end.detail, "version": end.version}
        yield Event(EventKind.RUN_FINISHED, Role.AGGREGATOR, time_ms, data)


async def missing_events(federation: Federation) -> AsyncIterator[Event]:
    """Give the events that are not in the log any more, as far as the versions in it say what they were.

    Raises as `past_events` does.
    """
    async for event in _versions_up_to(federation, await _first_version(federation)):
        yield event


async def _first_version(federation: Federation) -> int | None:
    """Return the first version that an event tells of; None where no event does."""
    async for event in read_events(federation.broker, federation.topics):
        if event.kind is EventKind.VERSION_PUBLISHED:
            return whole(event.data["version"])
    return None


async def _versions_up_to(federation: Federation, number: int | None) -> AsyncIterator[Event]:
    """Give the events that the versions up to `number` stand for; None: all versions.

    Of that version itself some events may be gone too.
    """
    if number == 0:
        return
    async with version_index(federation.broker, federation.topics.models) as index:
        async for found, _ in index.walk(to=number):
            for event in _events_of(found.head):
                yield event


def _events_of(head: VersionHead) -> Iterator[Event]:
    for item in head.manifest:
        yield Event(EventKind.UPDATE_FOLDED, Role.AGGREGATOR, head.time_ms, folded_data(item, head.number))
    yield Event(EventKind.VERSION_PUBLISHED, Role.AGGREGATOR, head.time_ms, published_data(head))
