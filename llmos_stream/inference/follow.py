"""Following the log: new versions are made ready beside those that serve, and what operators promote is noted."""

import logging
from contextlib import AsyncExitStack

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.inference.model_pool import LoadedModel, ModelPool, load_model
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log import ControlView, Pointer, Replica, Version, wait_for_topics
from llmos_stream.log.record_tracing import version_attributes
from llmos_stream.runtime import BROKER, MODEL, Offload, Shutdown, met, run_while
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.telemetry.tracing import follow
from llmos_stream.training import Task

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CATCH_UP_SECONDS = 60.0
_PROMOTED_SECONDS = 30.0
"""How long nothing serves after a start because the registry has not yet given the promoted version."""


class Following:
    """Puts versions on the pool. `promoted` finds those that it is not following any more."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        task: Task,
        pool: ModelPool,
        promoted: Promoted,
        offload: Offload,
        shutdown: Shutdown,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._topics = Topics(settings.federation.name)
        self._task = task
        self._pool = pool
        self._promoted = promoted
        self._offload = offload
        self._shutdown = shutdown
        self._taken: int | None = None  # not the newest held, which may be another run's, from the registry
        self._refused: int | None = None

    async def run(self) -> None:
        """Until a stop is asked for. What is held goes on serving while the broker does not answer.

        Raises ConfigError when the task's model is not the federation's.
        """
        what = "going on with what is held; looking for versions again"
        await run_while(keep_trying(self._follow, self._shutdown, what), self._promoted.run())

    async def _follow(self) -> None:
        if not await wait_for_topics(self._broker, self._topics, self._shutdown):
            return
        async with AsyncExitStack() as stack:
            control, replica = await until_stop(self._open(stack), self._shutdown)
            met(BROKER)
            while not self._shutdown.requested:
                if (promoted := control.promoted) is not None:
                    await self._promote(promoted.version, replica, control.latest)
                if control.latest is not None:
                    await self._take(replica, control.latest)
                await control.poll(_POLL_SECONDS)

    async def _open(self, stack: AsyncExitStack) -> tuple[ControlView, Replica]:
        topics = self._topics
        control = ControlView(await stack.enter_async_context(self._broker.reader([topics.control], start="earliest")))
        models = await stack.enter_async_context(self._broker.reader([topics.models], start="latest"))
        await control.catch_up()
        return control, Replica(models, topics.models, self._settings.wire, self._offload)

    async def _take(self, replica: Replica, latest: Pointer) -> None:
        if latest.version == self._refused or (self._taken is not None and latest.version <= self._taken):
            return
        try:
            version = await replica.move_to(latest, _CATCH_UP_SECONDS)
            with follow("inference.swap", replica.parent_span, version_attributes(version.head)):
                await self._hold(version)
            self._taken = latest.version
        except OffsetGone:
            logger.warning("version %d was deleted before it was read; going on with the next", latest.version)
        except Rejected as error:
            logger.error("version %d cannot be read and never serves: %s", latest.version, error)
            self._refused = latest.version

    async def _promote(self, version: int, replica: Replica, latest: Pointer | None) -> None:
        """Before the newest: after a restart, too, the promoted version is the first that serves."""
        if version == self._pool.promoted:
            self._promoted.forget()
            return
        if latest is not None and latest.version == version:
            await self._take(replica, latest)
        if version in self._pool.models:
            self._pool.promote(version)
        elif (held := await self._find(version)) is not None:
            self._publish(held, promoted=True)
        else:
            return  # what served goes on
        logger.info("version %d is promoted", version)

    async def _find(self, version: int) -> LoadedModel | None:
        patience = 0.0 if self._pool.models else _PROMOTED_SECONDS
        return await until_stop(self._promoted.find(version, patience), self._shutdown)

    async def _hold(self, version: Version) -> None:
        self._publish(await self._offload.run(load_model, self._task, self._settings.task.share, version))

    def _publish(self, held: LoadedModel, *, promoted: bool = False) -> None:
        self._pool.publish(held, promoted=promoted)
        met(MODEL)
        logger.info("version %d is ready", held.version)
