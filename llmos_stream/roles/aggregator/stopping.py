"""When a run ends: the stop rule, fed with versions, evaluations from the log, and the time.

Evaluations are those of `stop.source`: an evaluator's, each as it comes, or what the sites say together (see
`core.site_quorum`). What waits for more sites is read again after a restart: `position` stays at the oldest of it.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

from llmos_stream.broker import Reader
from llmos_stream.config import StopSettings
from llmos_stream.core import Stop, make_stop_rule
from llmos_stream.core.collapse import Collapse, CollapseGuard, loss_of
from llmos_stream.errors import ConfigError, StateError
from llmos_stream.log.event_check import evaluation_fault
from llmos_stream.log.stream import EventStream, foreign, go_on
from llmos_stream.roles.aggregator.site_evaluations import Roster, SiteEvaluations
from llmos_stream.runtime import Clock
from llmos_stream.types import Event
from llmos_stream.wire.control import RunEnd
from llmos_stream.wire.evaluations import site_of, trainer_of

logger = logging.getLogger(__name__)

_AT_ONCE = 5000
"""Updates must not wait for a flood of evaluations."""
_LOOK_SECONDS = 0.05
_GUARD = "guard"
_SITES = "sites"


class Ending:
    """Watches one run through a reader of `<f>.evaluations`, from version 0 on, through all restarts."""

    def __init__(
        self, settings: StopSettings, evaluations: Reader, clock: Clock, guard: CollapseGuard | None = None
    ) -> None:
        self._clock = clock
        self._settings = settings
        self.guard = guard
        self.collapse: Collapse | None = None
        """The last one that the guard saw. Whoever acts on it takes it away."""
        self._rule = make_stop_rule(settings)
        self._sites = SiteEvaluations(settings, clock) if settings.source == "sites" else None
        self._reader = evaluations
        self._evaluations = EventStream(evaluations, clock=clock, on_gap=go_on("evaluations"))
        self._at = evaluations.partitions[0]
        self.started_ms = self._clock.time_ms()
        # The clock of the wall may be put back while this runs; the time before it started can only come from there.
        self._before_seconds, self._since = 0.0, self._clock.monotonic()

    def resume(self, started_ms: int, learnt: Mapping[str, object], evaluations: int) -> None:
        """Go on from what `learnt` and `position` gave when the newest version was committed."""
        self.started_ms = started_ms
        self._before_seconds = max(0.0, (self._clock.time_ms() - started_ms) / 1000)
        self._evaluations.seek(self._at, evaluations)
        if self.guard is not None:
            self.guard.load(learnt.get(_GUARD))
        if self._sites is not None:
            self._sites.load(learnt.get(_SITES))
        try:
            self._rule.load({name: value for name, value in learnt.items() if name not in {_GUARD, _SITES}})
        except StateError as error:
            logger.error("%s; patience counts anew", error)

    def learnt(self) -> dict[str, object]:
        """What the stop rule and the guard know, for `resume`."""
        guard = {} if self.guard is None else {_GUARD: self.guard.dump()}
        return self._rule.dump() | guard | ({} if self._sites is None else {_SITES: self._sites.dump()})

    def know(self, roster: Roster) -> None:
        """Let the reports of these sites count."""
        if self._sites is not None:
            self._sites.roster = roster

    async def position(self) -> int:
        """The next offset of the evaluations to look at, for `resume`."""
        position = await self._reader.position(self._at)
        waiting = None if self._sites is None else self._sites.oldest_offset
        return position if waiting is None else min(waiting, position)

    def at_version(self, number: int) -> RunEnd | None:
        """Whether the run ends with version `number` for its number alone."""
        return self._end(self._rule.observe_version(number), number)

    def by_operator(self, number: int) -> RunEnd:
        """The run ends with version `number` because somebody wants that."""
        return by_operator(number, self._recorded())

    def count_anew(self) -> None:
        """The run goes on after an end: its time counts from now."""
        self.started_ms = self._clock.time_ms()
        self._before_seconds, self._since = 0.0, self._clock.monotonic()

    async def caught_up(self, number: int) -> RunEnd | None:
        """Take in all that the log says by now; whether the run ends because of it."""
        while True:
            caught_up = await self._evaluations.at_end()
            if (end := await self.observe(number)) is not None or caught_up:
                return end
            await self._clock.sleep(_LOOK_SECONDS)

    async def observe(self, number: int) -> RunEnd | None:
        """Take in what has been evaluated and the time; `number` is the present version."""
        stop, taken = self._rule.observe_version(number), 0
        while taken < _AT_ONCE and (found := await self._evaluations.events(0)):
            taken += len(found)
            for topic, offset, event in found:
                fault = evaluation_fault(event, self._clock)
                match event.data:
                    case {"version": int(version), "metrics": dict(metrics)} if fault is None and version <= number:
                        said = self._take(event, version, metrics, offset)
                        stop = stop or said
                    case _:
                        foreign(topic, offset, fault or f"there is no version {event.data.get('version')}")
        said = self._take_sites(number)
        stop = stop or said
        return self._end(stop or self._rule.tick(self._before_seconds + self._clock.monotonic() - self._since), number)

    def _end(self, stop: Stop | None, number: int) -> RunEnd | None:
        return None if stop is None else RunEnd(stop.reason, stop.detail, number, self._recorded())

    def _recorded(self) -> dict[str, object]:
        return self._settings.model_dump(mode="json")

    def _take(self, event: Event, version: int, metrics: Mapping[str, float | None], offset: int) -> Stop | None:
        """Take in an evaluation, where it is of those that the settings say."""
        is_of_site = site_of(event) is not None
        if self._sites is not None:
            if is_of_site and trainer_of(event) is None:
                self._sites.take(event, version, offset)
            return None
        if is_of_site:
            return None
        self._watch(version, loss_of(metrics))
        # JSON has no NaN: an evaluation that diverged carries null.
        return self._judge(version, {name: math.nan if value is None else value for name, value in metrics.items()})

    def _take_sites(self, number: int) -> Stop | None:
        """Take in the versions that enough sites have reported on by now."""
        found: Stop | None = None
        for version, metrics, loss, said_by in () if self._sites is None else self._sites.verdicts(number):
            self._watch(version, loss)
            if (stop := self._judge(version, metrics)) is not None:
                found = found or replace(stop, detail=f"{stop.detail} ({said_by})")
        return found

    def _watch(self, version: int, loss: float | None) -> None:
        if self.guard is not None and loss is not None:
            self.collapse = self.guard.observe(version, loss) or self.collapse

    def _judge(self, version: int, metrics: Mapping[str, float]) -> Stop | None:
        try:
            return self._rule.observe_evaluation(version, metrics)
        except ConfigError as error:
            # What an evaluator sends must not end the aggregator; a person reads this and mends one of the two.
            logger.error("%s", error)
            return None


def by_operator(number: int, stop: Mapping[str, object] | None = None) -> RunEnd:
    """A run's end with version `number` because somebody wanted that, and the stop settings that it had, if known."""
    return RunEnd("finish", f"an operator ended it at version {number}", number, stop)


def is_another(stop: StopSettings, end: RunEnd) -> bool:
    """Whether these are other stop settings than those that a run ended under, as far as that is known."""
    now = stop.model_dump(mode="json")
    return end.stop is not None and any(value != now[name] for name, value in end.stop.items() if name in now)
