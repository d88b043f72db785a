"""The aggregator: folds updates into versions. One leads and writes; others stand by.

updates -> Intake -> core.step -> Publisher -> models, snapshots, control, events, quarantine
events  -> StopRule -> end of the run
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, FederationFinished, Fenced, TransactionAborted
from llmos_stream.roles.control import ControlView, RunEnd
from llmos_stream.roles.ending import Ending
from llmos_stream.roles.folding import Folding
from llmos_stream.roles.intake import Intake
from llmos_stream.roles.leadership import Leadership
from llmos_stream.roles.publisher import Publisher, group_of
from llmos_stream.roles.recovery import fetch_newest, recover
from llmos_stream.roles.retry import keep_trying
from llmos_stream.roles.versions import Version, check_fits
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.training import Task, shared_tensors

log = logging.getLogger(__name__)

_CATCH_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Initial:
    """What version 0 is made of: its layout and its weights (flat, float32)."""

    layout: Layout
    weights: Tensor


def initial_of(task: Task, settings: Settings) -> Initial:
    """Version 0 of a task: the shared tensors of its freshly made model."""
    shared = shared_tensors(task.model(), settings.task.share)
    layout = Layout.of(shared)
    return Initial(layout, layout.flatten(shared))


async def run_aggregator(
    broker: Broker, settings: Settings, initial: Callable[[], Initial], offload: Offload, shutdown: Shutdown
) -> RunEnd | None:
    """Aggregate until the stop rule fires (returned) or a stop is asked for (None).

    While another aggregator leads this federation, this one stands by, and takes over when that one dies,
    hangs or leaves. A new federation starts from `initial`, a running one goes on from its newest version.
    When the broker fails, what was not committed is dropped and read again from the log, as after a crash.
    Raises FederationFinished when the run has ended before, Fenced when another aggregator has taken over
    from this one, ConfigError when the model does not have the layout of the federation's versions, or
    does not fit what readers hold.
    """
    seed = await offload.run(initial)
    check_fits(seed.layout, settings)
    aggregator = _Aggregator(broker, settings, seed, offload, shutdown)
    return await keep_trying(aggregator.attempt, shutdown, "starting again from the log")


class _Aggregator:
    """One process's part, through all its attempts to lead."""

    def __init__(self, broker: Broker, settings: Settings, seed: Initial, offload: Offload, shutdown: Shutdown) -> None:
        self._broker = broker
        self._settings = settings
        self._seed = seed
        self._offload = offload
        self._shutdown = shutdown
        self._topics = Topics(settings.federation.name)
        self._leadership = Leadership(broker, self._topics, settings)
        self._first = True

    async def attempt(self) -> RunEnd | None:
        """From the log on: stand by, lead, leave. Raises a retriable error when the log failed."""
        await self._broker.create_topics(self._topics.specs(self._settings.topics))
        async with self._broker.reader([self._topics.control], start="earliest") as reader:
            control = ControlView(reader, with_sequences=True)
            await control.catch_up(_CATCH_UP_SECONDS)
            if control.finished and self._first:
                raise FederationFinished(
                    f"federation {self._settings.federation.name} ended at version {control.finished.version} "
                    f"({control.finished.reason}); start a new one under another federation.name"
                )
            self._first = False
            # Before anything else: one that must not run here should not take over from the one that does.
            newest = await self._newest(control, None)
            if not await self._leadership.await_turn(control, self._shutdown):
                return control.finished
            try:
                return await self._lead(control, newest)
            except Fenced as error:
                if await self._leadership.superseded():
                    raise
                raise TransactionAborted(
                    "the broker gave up a transaction that took too long; if this comes again, raise "
                    "LLMOS_BROKER__TRANSACTION_TIMEOUT_SECONDS"
                ) from error

    async def _lead(self, control: ControlView, newest: Version | None) -> RunEnd | None:
        settings, topics, broker = self._settings, self._topics, self._broker
        async with AsyncExitStack() as stack:
            # The producer comes first: from here on an older aggregator is fenced and its transaction settled.
            producer = await stack.enter_async_context(broker.producer(group_of(settings)))
            await self._leadership.claim(producer, control)
            events = await stack.enter_async_context(broker.reader([topics.events], start="latest"))
            updates = await stack.enter_async_context(
                # Payloads carry a digest of their own.
                broker.reader([topics.updates], start="committed", group=group_of(settings), check_crcs=False)
            )
            folding = Folding(
                Intake(updates, self._seed.layout, settings, self._offload),
                Ending(settings.stop, events),
                Publisher(producer, topics, settings),
                settings,
                self._offload,
                self._seed.layout,
            )
            main = self._fold(folding, control, [] if newest is None else [newest])
            del newest
            end = await run_while(main, self._leadership.beat(control, folding.alive))
        await self._leadership.leave()
        if end is not None:
            log.info("the run has ended: %s", end.detail)
        return end

    async def _fold(self, folding: Folding, control: ControlView, known: list[Version]) -> RunEnd | None:
        """Begin or resume, then fold. `known` is emptied, so that a model that nobody needs any more can go."""
        newest = await self._newest(control, known.pop() if known else None)
        if newest is None:
            await folding.begin(self._seed.weights)
        else:
            log.info("going on from version %d", newest.head.number)
            found = await recover(self._broker, self._topics, self._settings, control, newest, self._offload)
            del newest
            await folding.resume(found)
            del found
        return await folding.run(self._shutdown)

    async def _newest(self, control: ControlView, known: Version | None) -> Version | None:
        """The version that `control` points to, which may be `known` already."""
        pointer = control.latest
        if pointer is None or (known is not None and known.head.number == pointer.version):
            return known
        newest = await fetch_newest(self._broker, self._topics, self._settings, pointer, self._offload)
        if newest.layout.digest != self._seed.layout.digest:
            raise ConfigError(
                "task.entry: the model does not have the tensors of the federation's versions "
                f"({self._seed.layout.numel} elements here, {newest.layout.numel} there)"
            )
        return newest
