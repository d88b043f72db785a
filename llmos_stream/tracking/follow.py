"""From the log of a federation to experiment trackers: live, or afterwards."""

import logging
from collections.abc import Mapping, Sequence

from llmos_stream.errors import NotFound
from llmos_stream.log.events import follow_events
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.log.past import missing_events, past_events
from llmos_stream.log.versions import ROLLED_BACK_TO
from llmos_stream.reporting.history.points import CLIENT_LIMIT, RunPoints
from llmos_stream.runtime.retry import keep_trying
from llmos_stream.tracking.sink import Run, Sink, TrackerUnavailable
from llmos_stream.tracking.tracker import Tracker
from llmos_stream.types import Event, VersionHead

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
_LAST_EVALUATION_SECONDS = 60.0
_LAST_EVENTS_SECONDS = 2.0
_PER_VERSION = {"limits", "adapted", ROLLED_BACK_TO}
"""What a version's rule records that is no setting."""


class Tracking:
    """Tracks one run in several places."""

    def __init__(self, federation: Federation, sinks: Sequence[Sink], client_limit: int = CLIENT_LIMIT) -> None:
        self._federation = federation
        self._trackers = [Tracker(sink) for sink in sinks]
        self._points = RunPoints(client_limit)
        self._run: Run | None = None
        self._quiet_since = 0.0
        self._has_begun = False
        self._begun_under: Mapping[str, str] = {}

    @property
    def written(self) -> dict[str, int]:
        """How many points were new, by target."""
        return {tracker.sink.target: tracker.written for tracker in self._trackers}

    @property
    def points(self) -> RunPoints:
        """What has been read."""
        return self._points

    @property
    def run(self) -> Run | None:
        """The run; None where there has been no version."""
        return self._run

    async def once(self) -> None:
        """Track what the log holds now.

        Raises:
            TopicMissing: There is no such federation.
            NotFound: It has no version yet.
            TrackerUnavailable: A tracker does not answer.
        """
        async with self._federation.control() as control:
            count = 0
            async for event in past_events(self._federation, control.finished):
                self._take(event)
                count += 1
                if count % _AT_ONCE == 0:
                    await self._write()
        await self._write()
        if self._run is None:
            raise NotFound(f"federation {self._federation.name} has no version yet")
        await self._conclude()

    async def follow(self) -> None:
        """Track the run until it has ended, or a stop is asked for. Trackers that do not answer are tried again.

        Raises:
            TrackerUnavailable: A tracker does not answer at the beginning.
        """
        federation = self._federation
        topics = federation.topics
        if not await federation.wait_for_topics(topics.events, topics.control, topics.models):
            return
        async with federation.control() as control:
            if control.finished is not None:
                await self.once()
                return
        async for event in missing_events(federation):
            self._take(event)
        await follow_events(federation.broker, topics, self._take, federation.shutdown, after=self._after)
        await self._patiently()
        if left := sum(len(tracker.waiting) for tracker in self._trackers):
            logger.warning("%d points were not written; run the command again to go on from there", left)
        await self._conclude()

    def _take(self, event: Event) -> None:
        self._quiet_since = self._federation.clock.monotonic()
        if points := self._points.take(event):
            for tracker in self._trackers:
                tracker.waiting += points

    async def _after(self) -> None:
        await (self._patiently() if self._has_begun else self._write())
        if self._is_over():
            self._federation.shutdown.request()

    async def _patiently(self) -> None:
        shutdown = self._federation.shutdown
        await keep_trying(self._write, shutdown, "trying again", trouble=TrackerUnavailable, need="tracking")

    def _is_over(self) -> bool:
        """Whether the run has ended, and the last version was measured or nobody does so any more."""
        history = self._points.history
        if history.finish is None:
            return False
        last, quiet = history.scores.last, self._federation.clock.monotonic() - self._quiet_since
        if last is None:
            return quiet >= _LAST_EVENTS_SECONDS
        return last.version >= (history.version or 0) or quiet >= _LAST_EVALUATION_SECONDS

    async def _write(self) -> None:
        if self._run is None and self._points.history.version is not None:
            head = await self._version(oldest=True)
            if head is not None:
                self._run = Run(self._federation.name, head.time_ms, is_whole=head.parent is None)
                self._begun_under = settings_of_version(head)
        if self._run is None:
            return
        for tracker in self._trackers:
            if tracker.waiting or not tracker.is_open:
                await self._federation.run(tracker.write, self._run, self._begun_under)
        self._has_begun = True

    async def _conclude(self) -> None:
        """Keep the settings of the newest version where they are others, and how the run has ended."""
        newest, end = await self._version(oldest=False), self._points.history.finish
        if newest is None:
            return
        for tracker in self._trackers:
            if tracker.is_open:
                await self._federation.run(tracker.sink.describe, settings_of_version(newest))
                if end is not None:
                    await self._federation.run(tracker.sink.finish, end)

    async def _version(self, *, oldest: bool) -> VersionHead | None:
        async with version_index(self._federation.broker, self._federation.topics.models) as index:
            found = await (index.oldest() if oldest else index.newest())
        return None if found is None else found.head

    async def close(self) -> None:
        """Let go of the trackers."""
        for tracker in self._trackers:
            await self._federation.run(tracker.sink.close)


def settings_of_version(head: VersionHead) -> dict[str, str]:
    """The settings that a version records, as texts by their full names."""
    rule: dict[str, object] = {name: value for name, value in head.rule.items() if name not in _PER_VERSION}
    if head.rule.get("adapted") and isinstance(aggregation := rule.get("aggregation"), Mapping):
        rule["aggregation"] = {**aggregation, "buffer_size": "by who takes part"}
    return dict(_flat(rule)) | {f"build.{name}": value for name, value in head.build.items()}


def _flat(values: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", "" if value is None else str(value)))
    return found
