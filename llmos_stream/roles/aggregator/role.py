"""The aggregator: folds updates into versions. One leads and writes; others stand by.

updates     -> Intake -> core.step -> Publisher -> models, snapshots, control, events, quarantine
evaluations -> StopRule -> end of the run
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import device_for
from llmos_stream.core.collapse import CollapseGuard
from llmos_stream.errors import ConfigError
from llmos_stream.log.control import ControlView, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator.intake import Intake
from llmos_stream.roles.aggregator.lifecycle import Aggregation
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.preflight import check_fits
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.roles.aggregator.recovery import find_newest
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.training import Task, shared_layout, shared_tensors, task_errors
from llmos_stream.training.differences import difference

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Initial:
    """What version 0 is made of: its layout and its weights (flat, float32)."""

    layout: Layout
    weights: Tensor


def initial_of(task: Task, settings: Settings) -> Initial:
    """Version 0 of a task: the shared tensors of its freshly made model."""
    with task_errors(settings.task.entry):
        model = task.model()
    layout = shared_layout(model, settings.task.share)
    return Initial(layout, layout.flatten(shared_tensors(model, settings.task.share)))


async def run_aggregator(
    broker: Broker,
    settings: Settings,
    initial: Callable[[], Initial],
    offload: Offload,
    shutdown: Shutdown,
    clock: Clock = SYSTEM_CLOCK,
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
    device_for(settings.aggregator.device)  # a standby should not find out when it is needed
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown, clock)
    aggregator = _Aggregator(federation, settings, initial, seed)
    del seed  # as large as the model, and needed once at most
    return await aggregator.run()


class _Aggregator(Aggregation):
    """Aggregates what clients send."""

    def __init__(
        self, federation: Federation, settings: Settings, initial: Callable[[], Initial], seed: Initial
    ) -> None:
        super().__init__(federation, settings)
        self._initial = initial
        self._layout = seed.layout
        self._seed: Initial | None = seed

    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        await self._require_same_layout(control)
        return True

    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        federation, settings, layout = self._federation, self._settings, self._layout
        broker, topics = federation.broker, federation.topics
        await self._require_same_layout(control)
        if control.latest is not None:
            self._seed = None
        evaluations = await stack.enter_async_context(broker.reader([topics.evaluations], start="latest"))
        # Payloads carry a digest of their own.
        updates = broker.reader([topics.updates], start="committed", group=group_of(topics), check_crcs=False)
        reader = await stack.enter_async_context(updates)
        source = Intake(federation, reader, layout, local_rule(settings), settings.aggregator.decode_bytes)
        ending = Ending(settings.stop, evaluations, federation.clock, CollapseGuard(settings.guard))
        folding = Folding(federation, settings, layout, source, ending, publisher)
        return await self._fold(folding, control, partial(self._begin, control))

    async def _begin(self, control: ControlView, folding: Folding) -> None:
        seed, self._seed = self._seed, None
        if seed is None:
            seed = await self._federation.run(self._initial)
        if (lost := control.newest_kept) is None:
            await folding.begin(seed.weights)
            return
        # Clients wait for a higher number than that of what they have.
        logger.error(
            "version %d was published, and %s lacks it: beginning again as version %d, from the initial weights",
            lost,
            self._federation.topics.models,
            lost + 1,
        )
        await folding.begin(seed.weights, lost + 1, floor=lost + 1)

    async def _require_same_layout(self, control: ControlView) -> None:
        found = await find_newest(self._federation, control)
        if found is not None and found.layout.digest != self._layout.digest:
            raise ConfigError(
                "task.entry, task.share: the model does not have the tensors of the federation's versions "
                f"({difference(self._layout, found.layout)})"
            )
