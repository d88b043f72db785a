"""Follows the log: loads new versions beside those that serve, and notes what operators promote."""

import logging
from contextlib import AsyncExitStack

from llmos_stream.errors import OffsetGone, Rejected, TopicMissing
from llmos_stream.inference.model_pool import LoadedModel, Make, ModelPool, load_model
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log import ControlView, Pointer
from llmos_stream.log.federation import Federation
from llmos_stream.log.record_tracing import version_attributes
from llmos_stream.log.replica import Replica
from llmos_stream.runtime import BROKER, MODEL, met, run_while
from llmos_stream.runtime.health import lost
from llmos_stream.telemetry.tracing import follow

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CATCH_UP_SECONDS = 60.0
_PROMOTED_SECONDS = 30.0
"""How long a start waits for the promoted version from the registry before another one serves."""


class PoolUpdater:
    """Adds versions to the pool. `make` makes the models, and `promoted` finds older versions."""

    def __init__(self, federation: Federation, make: Make, pool: ModelPool, promoted: Promoted) -> None:
        self._federation = federation
        self._make = make
        self._pool = pool
        self._promoted = promoted
        self._taken: int | None = None  # the newest one in the pool may be another run's, from the registry
        self._unreadable: int | None = None

    async def run(self) -> None:
        """Follow until a stop is asked for. The pool goes on serving while the broker does not answer.

        Raises:
            ConfigError: The task's model is not the federation's.
            TopicMissing: A topic was deleted before there was a version to serve.
        """
        await run_while(self._keep_following(), self._promoted.run())

    async def _keep_following(self) -> None:
        what = "going on with what is held; looking for versions again"
        try:
            await self._federation.keep_trying(self._follow, what)
        except TopicMissing as error:
            if not self._pool.models:
                raise
            lost(BROKER, str(error))
            logger.error("%s; what is held goes on serving, and no other version comes until a restart", error)

    async def _follow(self) -> None:
        topics = self._federation.topics
        if not await self._federation.wait_for_topics(topics.models, topics.control):
            return
        async with AsyncExitStack() as stack:
            control, replica = await self._federation.until_stop(self._open(stack))
            met(BROKER)
            while not self._federation.shutdown.requested:
                if (promoted := control.promoted) is not None:
                    await self._promote(promoted.version, replica, control.latest)
                if control.latest is not None:
                    await self._take(replica, control.latest)
                await control.poll(_POLL_SECONDS)

    async def _open(self, stack: AsyncExitStack) -> tuple[ControlView, Replica]:
        federation = self._federation
        control = await stack.enter_async_context(federation.control())
        models = await stack.enter_async_context(federation.reader(federation.topics.models, start="latest"))
        return control, federation.replica(models)

    async def _take(self, replica: Replica, latest: Pointer) -> None:
        if latest.version == self._unreadable or (self._taken is not None and latest.version <= self._taken):
            return
        try:
            version = await replica.move_to(latest, _CATCH_UP_SECONDS)
            with follow("inference.swap", replica.parent_span, version_attributes(version.head)):
                self._publish(await self._federation.run(load_model, self._make, version))
            self._taken = latest.version
        except OffsetGone:
            logger.warning("version %d was deleted before it was read; going on with the next", latest.version)
            self._unreadable = latest.version
        except Rejected as error:
            logger.error("version %d cannot be read and never serves: %s", latest.version, error)
            self._unreadable = latest.version

    async def _promote(self, version: int, replica: Replica, latest: Pointer | None) -> None:
        """Serve the promoted version. After a restart it comes before the newest one."""
        if version == self._pool.promoted:
            self._promoted.forget()
            return
        if latest is not None and latest.version == version:
            await self._take(replica, latest)
        if version in self._pool.models:
            self._pool.promote(version)
        elif (model := await self._find(version)) is not None:
            self._publish(model, promoted=True)
        else:
            return  # the same version goes on serving
        logger.info("version %d is promoted", version)

    async def _find(self, version: int) -> LoadedModel | None:
        seconds = 0.0 if self._pool.models else _PROMOTED_SECONDS
        return await self._federation.until_stop(self._promoted.find(version, seconds))

    def _publish(self, model: LoadedModel, *, promoted: bool = False) -> None:
        self._pool.publish(model, promoted=promoted)
        met(MODEL)
        logger.info("version %d is ready", model.version)
