"""The version that an operator has promoted, where it is none of those held: from the log, or else from the registry.

The log has it for as long as it keeps it. The registry may be away for a while: what is held serves until it answers.
"""

import logging
from collections.abc import Callable
from time import monotonic

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, OffsetGone
from llmos_stream.inference.held import Held, build, build_archived
from llmos_stream.registry import STORE, Damaged, NotArchived, Store, StoreUnavailable, open_store
from llmos_stream.replay import Missing, ReplayLog
from llmos_stream.runtime import Offload
from llmos_stream.runtime.vitals import RETRIES
from llmos_stream.training import Task

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 30.0


class Promoted:
    """Looks for one version at a time; `fetching` is for what waits for the store.

    Raises ConfigError for a `registry.url` that makes no sense.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        task: Task,
        offload: Offload,
        fetching: Offload,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._task = task
        self._offload = offload
        self._fetching = fetching
        self._clock = clock
        self._store: Store | None = None if settings.registry.url is None else open_store(settings)
        self._wanted: int | None = None
        self._in_log = True
        self._nowhere = False
        self._due = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    async def find(self, version: int) -> Held | None:
        """The version; None when it cannot be had, or not at present, as the log says once.

        Asked again it tries again, but not before the pause is over, and not what cannot change.
        """
        if version != self._wanted:
            self._wanted, self._in_log, self._nowhere = version, True, False
            self._due, self._pause = 0.0, _FIRST_PAUSE_SECONDS
        if self._nowhere or self._clock() < self._due:
            return None
        try:
            if self._store is None:
                return await self._logged(version)
            if self._in_log:
                try:
                    return await self._logged(version)
                except (Missing, OffsetGone) as error:
                    log.info("version %d is promoted; looking for it in the registry (%s)", version, error)
                    self._in_log = False
            return await self._archived(self._store, version)
        except StoreUnavailable as error:
            if not self._due:
                log.error("version %d is promoted and cannot be had yet (%s); what is held serves", version, error)
            RETRIES.labels(STORE).inc()
            self._due = self._clock() + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE_SECONDS)
        except (NotArchived, Damaged, ConfigError, Missing, OffsetGone) as error:
            log.error("version %d is promoted and cannot be had (%s); promote another", version, error)
            self._nowhere = True
        return None

    async def _logged(self, version: int) -> Held:
        """Raises Missing and OffsetGone."""
        async with ReplayLog(self._broker, self._settings, self._offload) as past:
            found = await past.version(version)
        return await self._offload.run(build, self._task, self._settings, found)

    async def _archived(self, store: Store, version: int) -> Held:
        """Raises StoreUnavailable, NotArchived, Damaged, and ConfigError for one of another model."""
        entry, weights = await self._fetching.run(store.load, version)
        return await self._offload.run(build_archived, self._task, self._settings, entry, weights)
