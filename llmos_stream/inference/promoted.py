"""Loads the version that an operator promoted, if it is not loaded yet: from the log, or else from the registry.

The registry may be away or slow: the loaded models serve until it answers. Its versions are verified. A tensor narrower
than float32 comes back rounded to its dtype, as it would be in the model.
"""

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass, field

from llmos_stream.config import RegistrySettings
from llmos_stream.errors import ConfigError, LlmosError, OffsetGone
from llmos_stream.inference.model_pool import LoadedModel, Make, load_archived, load_model
from llmos_stream.log.federation import Federation
from llmos_stream.registry import STORE, Damaged, NotArchived, StoreUnavailable, VersionStore, open_store
from llmos_stream.replay.index import Missing
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.runtime import Offload
from llmos_stream.telemetry.process_metrics import RETRIES

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 30.0


@dataclass(eq=False, slots=True)
class _Search:
    """The state of the search for one version."""

    version: int
    in_log: bool = True
    found: LoadedModel | None = None
    due: float = 0.0  # when the registry may be asked (again); never while it is being asked, or once that is in vain
    pause: float = field(default_factory=lambda: _FIRST_PAUSE_SECONDS)
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # nothing more comes before it is due


class Promoted:
    """Looks for one version at a time while `run` runs. The threads of `fetching` wait for the store.

    Raises:
        ConfigError: `registry.url` is wrong.
    """

    def __init__(
        self,
        federation: Federation,
        registry: RegistrySettings,
        make: Make,
        fetching: Offload,
    ) -> None:
        self._federation = federation
        self._make = make
        self._fetching = fetching
        self._store = None if registry.url is None else open_store(registry, federation.name)
        self._search: _Search | None = None
        self._wanted: asyncio.Queue[_Search] = asyncio.Queue()

    def forget(self) -> None:
        """Forget the search: the next promoted version starts a new one."""
        self._search = None

    async def find(self, version: int, registry_seconds: float = 0.0) -> LoadedModel | None:
        """Look for a version in the log, and for at most `registry_seconds` in the registry.

        A further call tries again, but not before the pause is over, and not what cannot succeed.

        Returns:
            The model, or None where it is not there (yet); a log line says so once.
        """
        if self._search is None or version != self._search.version:
            self._search = _Search(version)
        search = self._search
        if search.in_log:
            try:
                return await self._logged(version)
            except (ConfigError, Missing, OffsetGone) as error:
                search.in_log = False
                if self._store is None or isinstance(error, ConfigError):
                    self._give_up(search, error)
                else:
                    logger.info("version %d is promoted; looking for it in the registry (%s)", version, error)
        if self._federation.clock.monotonic() >= search.due:
            search.due = math.inf
            search.answered.clear()
            self._wanted.put_nowait(search)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(registry_seconds):
                await search.answered.wait()
        found, search.found = search.found, None  # so that the search does not keep it alive
        return found

    async def run(self) -> None:
        """Load from the registry what `find` looks for, until cancelled.

        One version at a time: a store that hangs on one gives no other either.
        """
        while True:
            search = await self._wanted.get()
            if self._store is None or search is not self._search:
                continue
            try:
                search.found = await self._archived(self._store, search.version)
            except StoreUnavailable as error:
                self._put_off(search, error)
            except (NotArchived, Damaged, ConfigError) as error:
                self._give_up(search, error)
            search.answered.set()

    def _put_off(self, search: _Search, error: StoreUnavailable) -> None:
        if search.pause == _FIRST_PAUSE_SECONDS and search is self._search:
            logger.error(
                "version %d is promoted and cannot be had yet (%s); what is held serves", search.version, error
            )
        RETRIES.labels(STORE).inc()
        search.due = self._federation.clock.monotonic() + search.pause
        search.pause = min(2 * search.pause, _LAST_PAUSE_SECONDS)

    def _give_up(self, search: _Search, error: LlmosError) -> None:
        search.due = math.inf
        search.answered.set()
        if search is self._search:
            logger.error("version %d is promoted and cannot be had (%s); promote another", search.version, error)

    async def _logged(self, version: int) -> LoadedModel:
        async with ReplayLog(self._federation) as past:
            found = await past.version(version)
        return await self._federation.run(load_model, self._make, found)

    async def _archived(self, store: VersionStore, version: int) -> LoadedModel:
        entry, weights = await self._fetching.run(store.load, version)
        return await self._federation.run(load_archived, self._make, entry, weights)
