"""A shadow: another rule tried on a live run's accepted updates, beside it and without touching it.

It is a federation of its own, `<f>.shadow.NAME`, which `versions`, `evaluate` and `replay` find under that
name. Its aggregator is the usual one, except for where the updates come from (see `AcceptedUpdates`). It
begins with the live run's newest full version, whose number it keeps, and ends when the live run has.
"""

import logging
from contextlib import AsyncExitStack

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.config import Settings, StopSettings
from llmos_stream.core import device_for
from llmos_stream.errors import ConfigError
from llmos_stream.log import ControlView, RunEnd, wait_for_topics
from llmos_stream.replay.accepted import AcceptedUpdates
from llmos_stream.replay.naming import live_of, shadow_of
from llmos_stream.roles.aggregator.lifecycle import Aggregation
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.preflight import check_fits
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.roles.aggregator.recovery import fetch_layout, fetch_newest
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.runtime import Offload, Shutdown

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


async def run_shadow(
    broker: Broker, settings: Settings, name: str, offload: Offload, shutdown: Shutdown
) -> RunEnd | None:
    """Shadow the federation that `settings` name, under their rule, until the live run and what it left have
    ended, the stop rule fires (returned) or a stop is asked for (None).

    Waits for the live run's first version. Of two processes with one name, one stands by. Raises as
    `run_aggregator` does.
    """
    live, own = Topics(settings.federation.name), shadow_settings(settings, name)
    device_for(settings.aggregator.device)
    if not await wait_for_topics(broker, live, shutdown):
        return None
    return await _Shadow(broker, live, own, offload, shutdown).run()


def shadow_settings(settings: Settings, name: str) -> Settings:
    """`settings`, naming the shadow in place of the federation. Raises ConfigError for a name that cannot be."""
    if live_of(settings.federation.name) is not None:
        raise ConfigError(f"federation.name: {settings.federation.name} is a shadow itself; name the live federation")
    federation = settings.federation.model_copy(update={"name": shadow_of(settings.federation.name, name)})
    Topics(federation.name)
    return settings.model_copy(update={"federation": federation})


class _Shadow(Aggregation):
    """Aggregates what a live run has accepted."""

    def __init__(self, broker: Broker, live: Topics, own: Settings, offload: Offload, shutdown: Shutdown) -> None:
        super().__init__(broker, own, offload, shutdown)
        self._live_topics = live
        self._live: ControlView

    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        self._live = ControlView(await self._follow(stack, self._live_topics.control))
        await self._live.catch_up()
        while self._live.latest is None and not self._shutdown.requested:
            await self._live.newer_than(None, _LOOK_SECONDS, self._shutdown)
        return self._live.latest is not None

    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        await self._live.catch_up()  # it may have stood by for long
        settings, broker, live = self._settings, self._broker, self._live.latest
        if live is None:
            raise ValueError("prepare first")
        if control.latest is None:
            layout = await fetch_layout(broker, self._live_topics, live)
        else:
            layout = await fetch_layout(broker, self._topics, control.latest)
        check_fits(layout, settings)
        models = broker.reader([self._live_topics.models], start="committed", group=group_of(settings))
        source = AcceptedUpdates(
            await stack.enter_async_context(models),
            await self._follow(stack, self._live_topics.updates),
            layout,
            settings.wire,
            self._offload,
        )
        events = await stack.enter_async_context(broker.reader([self._topics.events], start="latest"))
        ending = _Ending(settings.stop, events, self._live, source)
        folding = Folding(source, ending, publisher, settings, self._offload, layout)

        async def begin(folding: Folding) -> None:
            # A full one: what a delta left out of the version before is not known to its readers.
            full = live.beginning
            logger.info("shadowing %s from version %d on", self._live_topics.federation, full.version)
            await source.begin(full.version, full.offset)
            first = await fetch_newest(broker, self._live_topics, settings, full, self._offload)
            await folding.begin(first.weights, full.version)

        return await self._fold(folding, control, begin)


class _Ending(Ending):
    """Ends with the live run, too, once all that it has accepted is in a version here."""

    def __init__(self, stop: StopSettings, evaluations: Reader, live: ControlView, source: AcceptedUpdates) -> None:
        super().__init__(stop, evaluations)
        self._live = live
        self._source = source

    async def observe(self, number: int) -> RunEnd | None:
        end = await super().observe(number)
        await self._live.poll(0)
        finished = self._live.finished  # known before what is left is looked at: nothing can come after that
        if end is not None or finished is None or not await self._source.exhausted():
            return end
        return RunEnd("live_ended", f"the live run ended at version {finished.version} ({finished.reason})", number)
