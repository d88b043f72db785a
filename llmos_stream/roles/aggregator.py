"""The aggregator: folds updates into versions. One loop, one writer.

updates -> Intake -> core.step -> Publisher -> models, control, events, quarantine
events  -> StopRule -> end of the run
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError, ConfigError, FederationFinished
from llmos_stream.roles.control import ControlView, Pointer, RunEnd
from llmos_stream.roles.folding import Folding
from llmos_stream.roles.publisher import Publisher, group_of
from llmos_stream.roles.versions import Version, check_fits, fetch_version
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import Task, shared_tensors

log = logging.getLogger(__name__)

_CATCH_UP_SECONDS = 60.0
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 10.0


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

    A new federation starts from `initial`, a running one goes on from its newest version. When the
    broker fails, what was not committed is dropped and read again from the log, as after a crash.
    Raises FederationFinished when the run has ended before, Fenced when a newer aggregator has taken
    over, ConfigError when the model does not have the layout of the federation's versions, or does not
    fit what readers hold.
    """
    seed = await offload.run(initial)
    check_fits(seed.layout, settings)
    delay = _FIRST_RETRY_SECONDS
    while True:
        begun = monotonic()
        try:
            return await _aggregate(broker, settings, seed, offload, shutdown)
        except BrokerError as error:
            if not error.retriable or shutdown.requested:
                raise
            if monotonic() - begun > _LAST_RETRY_SECONDS:
                delay = _FIRST_RETRY_SECONDS  # it worked for a while: this is another trouble
            log.error("%s; starting again from the log in %.1f s", error, delay)
        if await shutdown.wait(delay):
            return None
        delay = min(2 * delay, _LAST_RETRY_SECONDS)


async def _aggregate(
    broker: Broker, settings: Settings, seed: Initial, offload: Offload, shutdown: Shutdown
) -> RunEnd | None:
    topics = Topics(settings.federation.name)
    await broker.create_topics(topics.specs(settings.topics))
    # Before anything else: one that must not run here should not fence the one that does.
    _, newest = await _newest(broker, topics, settings, seed, offload, None)
    async with AsyncExitStack() as stack:
        # The producer comes first: from here on an older aggregator is fenced and its transaction settled.
        producer = await stack.enter_async_context(broker.producer(group_of(settings)))
        events = await stack.enter_async_context(broker.reader([topics.events], start="latest"))
        updates = await stack.enter_async_context(
            broker.reader([topics.updates], start="committed", group=group_of(settings))
        )
        control, newest = await _newest(broker, topics, settings, seed, offload, newest)
        folding = Folding(updates, events, Publisher(producer, topics, settings), settings, offload, seed.layout)
        if newest is None:
            await folding.begin(seed.weights)
        else:
            log.info("going on from version %d", newest.head.number)
            await folding.resume(newest, control.sequences)
        del newest  # a model that nobody needs here any more
        return await folding.run(shutdown)


async def _newest(
    broker: Broker, topics: Topics, settings: Settings, seed: Initial, offload: Offload, known: Version | None
) -> tuple[ControlView, Version | None]:
    """The control topic now and the version it points to, which may be `known` already."""
    control = await _control(broker, topics, settings)
    if control.latest is None or (known is not None and known.head.number == control.latest.version):
        return control, known
    newest = await _fetch(broker, topics, settings, control.latest, offload)
    if newest.layout.digest != seed.layout.digest:
        raise ConfigError(
            "task.entry: the model does not have the tensors of the federation's versions "
            f"({seed.layout.numel} elements here, {newest.layout.numel} there)"
        )
    return control, newest


async def _control(broker: Broker, topics: Topics, settings: Settings) -> ControlView:
    async with broker.reader([topics.control], start="earliest") as reader:
        control = ControlView(reader, with_sequences=True)
        await control.catch_up(_CATCH_UP_SECONDS)
    if control.finished:
        raise FederationFinished(
            f"federation {settings.federation.name} ended at version {control.finished.version} "
            f"({control.finished.reason}); start a new one under another federation.name"
        )
    return control


async def _fetch(broker: Broker, topics: Topics, settings: Settings, pointer: Pointer, offload: Offload) -> Version:
    async with broker.reader([topics.models], start="latest") as reader:
        return await fetch_version(
            reader, topics.models, pointer, wire=settings.wire, offload=offload, timeout_seconds=_CATCH_UP_SECONDS
        )
