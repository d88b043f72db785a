"""The aggregator: folds updates into versions. One leads and writes; others stand by.

updates     -> Intake -> core.step -> Publisher -> models, snapshots, control, events, quarantine
evaluations -> StopRule -> end of the run
"""

import logging
from collections.abc import Callable, Mapping, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Self

from torch import Tensor, nn

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import Participants, device_for
from llmos_stream.core.collapse import CollapseGuard
from llmos_stream.errors import ConfigError
from llmos_stream.log.control import ControlView, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import STARTED_FROM, local_rule
from llmos_stream.roles.aggregator.gate import Gate, rules_of
from llmos_stream.roles.aggregator.intake import Intake
from llmos_stream.roles.aggregator.lifecycle import Aggregation
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.preflight import check_cut, check_fits
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.roles.aggregator.recovery import find_newest
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.training import Task, shared_layout, shared_tensors, task_errors
from llmos_stream.training.differences import difference
from llmos_stream.training.states import state_of
from llmos_stream.wire.control import PARTICIPATION, dump_participation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Initial:
    """What version 0 is made of: its layout and its weights (flat, float32).

    others: names in the model's state of what is not shared. started_from: where the weights are from; None: the model.
    """

    layout: Layout
    weights: Tensor
    others: frozenset[str] = frozenset()
    started_from: Mapping[str, object] | None = None

    @classmethod
    def of(cls, model: nn.Module, share: str) -> Self:
        """The shared tensors of a model as they are now."""
        layout = shared_layout(model, share)
        weights = layout.flatten(shared_tensors(model, share))
        shared = {spec.name for spec in layout.tensors} | layout.tied.keys()
        return cls(layout, weights, frozenset(state_of(model).keys() - shared))


class WarmStart(Protocol):
    """Weights for version 0 in place of the task's: see `registry.warm_start`, which knows where to find them.

    `setting` names it to its owner.
    """

    setting: str

    def is_recorded(self, origin: Mapping[str, object], /) -> bool:
        """Whether a run that records this origin began with these weights. May read a file."""

    async def load(
        self, federation: Federation, layout: Layout, others: Set[str], /
    ) -> tuple[Tensor, Mapping[str, object]]:
        """Return the weights (flat, float32), and the origin to record.

        Args:
            federation: The one that begins.
            layout: What its model shares.
            others: The names of what else is in the model's state.

        Raises:
            ConfigError: They are of another model; it names the first tensor that differs.
            NotFound: They are not there.
        """


def initial_of(task: Task, settings: Settings) -> Initial:
    """Version 0 of a task: the shared tensors of its freshly made model.

    Raises:
        ConfigError: Versions of this task move as a whole.
    """
    if settings.aggregation.fragments > 1 and (why := task.whole_because) is not None:
        raise ConfigError(f"aggregation.fragments: {why}; leave it at 1")
    with task_errors(settings.task.entry):
        model = task.model()
    return Initial.of(model, task.share)


async def run_aggregator(
    broker: Broker,
    settings: Settings,
    initial: Callable[[], Initial],
    offload: Offload,
    shutdown: Shutdown,
    clock: Clock = SYSTEM_CLOCK,
    *,
    resume: bool = False,
    warm_start: WarmStart | None = None,
) -> RunEnd | None:
    """Aggregate until the stop rule fires (returned) or a stop is asked for (None).

    While another aggregator leads this federation, this one stands by, and takes over when that one dies,
    hangs or leaves. A new federation starts from `initial`, with the weights of `warm_start` where there is one; a
    running one goes on from its newest version.
    When the broker fails, what was not committed is dropped and read again from the log, as after a crash.
    A run that has ended goes on under other stop settings than it ended under, or where `resume` says so.
    Raises FederationFinished when it does not, Fenced when another aggregator has taken over
    from this one, ConfigError when the model does not have the layout of the federation's versions, or
    does not fit what readers hold, or when there are versions already that did not begin with the `warm_start`.
    """
    seed = await offload.run(initial)
    check_fits(seed.layout, settings)
    device_for(settings.aggregator.device)  # a standby should not find out when it is needed
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown, clock)
    aggregator = _Aggregator(federation, settings, initial, seed, warm_start, resume=resume)
    del seed  # as large as the model, and needed once at most
    return await aggregator.run()


class _Aggregator(Aggregation):
    """Aggregates what clients send."""

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        initial: Callable[[], Initial],
        seed: Initial,
        warm_start: WarmStart | None,
        *,
        resume: bool,
    ) -> None:
        super().__init__(federation, settings, resume=resume)
        self._initial = initial
        self._layout = seed.layout
        self._warm_start = warm_start
        self._seed: Initial | None = seed

    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        await self._require_fitting(control)
        return True

    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        federation, settings, layout = self._federation, self._settings, self._layout
        broker, topics = federation.broker, federation.topics
        await self._require_fitting(control)
        if control.latest is not None:
            self._seed = None
        evaluations = await stack.enter_async_context(broker.reader([topics.evaluations], start="latest"))
        # Payloads carry a digest of their own.
        updates = broker.reader([topics.updates], start="committed", group=group_of(topics), check_crcs=False)
        reader = await stack.enter_async_context(updates)
        rules, participants = rules_of(settings.participation), Participants()
        gate = Gate(rules, control, participants, federation.clock)
        source = Intake(federation, reader, layout, local_rule(settings), settings.aggregator.decode_bytes, gate)
        ending = Ending(settings.stop, evaluations, federation.clock, CollapseGuard(settings.guard))
        folding = Folding(federation, settings, layout, source, ending, publisher, participants)
        if rules != control.participation:
            await publisher.write_control({PARTICIPATION: dump_participation(rules)})
        return await self._fold(folding, control, partial(self._begin, control))

    async def _begin(self, control: ControlView, folding: Folding) -> None:
        seed, self._seed = await self._warmed(), None
        if (lost := control.newest_kept) is None:
            await folding.begin(seed.weights, started_from=seed.started_from)
            return
        # Clients wait for a higher number than that of what they have.
        logger.error(
            "version %d was published, and %s lacks it: beginning again as version %d, from the initial weights",
            lost,
            self._federation.topics.models,
            lost + 1,
        )
        await folding.begin(seed.weights, lost + 1, floor=lost + 1, started_from=seed.started_from)

    async def _warmed(self) -> Initial:
        """What to begin with."""
        seed = self._seed
        if seed is None:
            seed = await self._federation.run(self._initial)
        if self._warm_start is None or seed.started_from is not None:
            return seed
        weights, origin = await self._warm_start.load(self._federation, seed.layout, seed.others)
        return replace(seed, weights=weights, started_from=origin)

    async def _require_fitting(self, control: ControlView) -> None:
        found = await find_newest(self._federation, control)
        if found is None:
            self._seed = await self._warmed()  # a standby should not find out when it is needed
            return
        if found.layout.digest != self._layout.digest:
            raise ConfigError(
                "task.entry, task.share: the model does not have the tensors of the federation's versions "
                f"({difference(self._layout, found.layout)})"
            )
        check_cut(found.rule, self._settings, self._federation.name)
        warm, origin = self._warm_start, found.rule.get(STARTED_FROM)
        began_so = isinstance(origin, Mapping) and warm and await self._federation.run(warm.is_recorded, origin)
        if warm is not None and not began_so:
            raise ConfigError(
                f"{warm.setting}: federation {self._federation.name} has versions already (the newest is "
                f"{found.pointer.version}), and began otherwise; leave it out to go on from them, or begin a "
                "federation of another name (federation.name)"
            )
