"""A shadow: another rule tried on a live run's accepted updates, beside it and without touching it.

It is a federation of its own, `<f>.shadow.NAME`, which `versions`, `evaluate` and `replay` find under that
name. Its aggregator is the usual one, except that `AcceptedUpdates` gives the updates. It begins with the live
run's newest full version, whose number it keeps, and ends when the live run has.
"""

import logging
from contextlib import AsyncExitStack
from dataclasses import replace

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.config import Settings, StopSettings
from llmos_stream.core import device_for
from llmos_stream.errors import ConfigError
from llmos_stream.log import ControlView, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.replay.accepted import AcceptedUpdates
from llmos_stream.replay.replay_log import live_of, shadow_of
from llmos_stream.roles.aggregator.lifecycle import Aggregation
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.preflight import check_cut, check_fits
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.roles.aggregator.recovery import fetch_version, find_newest
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.runtime import Clock, Offload, Shutdown

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


async def run_shadow(
    broker: Broker, settings: Settings, name: str, offload: Offload, shutdown: Shutdown, *, resume: bool = False
) -> RunEnd | None:
    """Shadow the federation that `settings` name, under their rule.

    Waits for the live run's first version. Ends once all that the finished live run accepted is folded, or when the
    stop rule fires; None: a stop was asked for. Of two processes with one name, one stands by. Goes on after an end,
    and raises, as `run_aggregator` does.
    """
    own = shadow_settings(settings, name)
    live = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown)
    device_for(settings.aggregator.device)
    if not await live.wait_for_topics(live.topics.models, live.topics.updates, live.topics.control):
        return None
    return await _Shadow(live, replace(live, topics=Topics(own.federation.name)), own, resume=resume).run()


def shadow_settings(settings: Settings, name: str) -> Settings:
    """Return `settings` with the shadow's name in place of the federation's.

    Raises:
        ConfigError: The name is not valid, or the federation is a shadow itself.
    """
    if live_of(settings.federation.name) is not None:
        raise ConfigError(f"federation.name: {settings.federation.name} is a shadow itself; name the live federation")
    shadow = shadow_of(settings.federation.name, name)
    Topics(shadow)
    return settings.changed(federation={"name": shadow})


class _Shadow(Aggregation):
    """Aggregates what a live run has accepted."""

    def __init__(self, live: Federation, own: Federation, settings: Settings, *, resume: bool) -> None:
        super().__init__(own, settings, resume=resume)
        self._live_federation = live
        self._live: ControlView

    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        shutdown = self._federation.shutdown
        self._live = await stack.enter_async_context(self._live_federation.control())
        while self._live.latest is None and not shutdown.requested:
            await self._live.newer_than(None, _LOOK_SECONDS, shutdown)
        return self._live.latest is not None

    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        await self._live.catch_up()  # it may have stood by for long
        own, there = self._federation, self._live_federation
        found = await find_newest(there, self._live)
        if found is None:
            raise ValueError("prepare first")
        live = found.pointer
        layout = (await find_newest(own, control) or found).layout
        check_fits(layout, self._settings)
        check_cut(found.rule, self._settings, there.name)
        models = own.broker.reader([there.topics.models], start="committed", group=group_of(own.topics))
        source = AcceptedUpdates(
            await stack.enter_async_context(models),
            await stack.enter_async_context(own.broker.reader([there.topics.updates], start="earliest")),
            layout.fragments(self._settings.aggregation.fragments),
            own.wire,
            own.offload,
        )
        evaluations = await stack.enter_async_context(own.broker.reader([own.topics.evaluations], start="latest"))
        ending = _Ending(self._settings.stop, evaluations, own.clock, self._live, source)
        folding = Folding(own, self._settings, layout, source, ending, publisher)

        async def begin(folding: Folding) -> None:
            # A full one: what a delta left out of the version before is not known to its readers.
            full = live.beginning
            logger.info("shadowing %s from version %d on", there.name, full.version)
            await source.begin(full.version, full.offset)
            first = await fetch_version(there, full)
            await folding.begin(first.weights, full.version)

        return await self._fold(folding, control, begin)


class _Ending(Ending):
    """Ends with the live run, too, once all that it has accepted is in a version here."""

    def __init__(
        self, stop: StopSettings, evaluations: Reader, clock: Clock, live: ControlView, source: AcceptedUpdates
    ) -> None:
        super().__init__(stop, evaluations, clock)
        self._live = live
        self._source = source

    async def observe(self, number: int) -> RunEnd | None:
        end = await super().observe(number)
        await self._live.poll(0)
        finished = self._live.finished  # known before what is left is looked at: nothing can come after that
        if end is not None or finished is None or not await self._source.exhausted():
            return end
        return RunEnd("live_ended", f"the live run ended at version {finished.version} ({finished.reason})", number)
