"""Follows what operators promote, and keeps servers of another make at it.

<f>.control -> Promoted -> a folder for peft -> each server: load, then unload what nobody goes back to

A server that is restarted has forgotten its adapters: each is asked again every `deploy.check_seconds`. What it answers
with stays until the next adapter is loaded. The version promoted before stays loaded, for requests that name it and for
going back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from prometheus_client import Gauge
from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.inference.deployment.folders import AdapterFolders
from llmos_stream.inference.deployment.servers import Adapter, Server, ServerError, servers_of
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log import Promotion
from llmos_stream.log.federation import Federation
from llmos_stream.runtime import BROKER, Offload, Shutdown, met, run_while
from llmos_stream.runtime.retry import keep_trying

logger = logging.getLogger(__name__)

DEPLOYED = Gauge("llmos_deployed_version", "Number of the version that all servers answer with.")
_POLL_SECONDS = 0.25


class _Wanted(NamedTuple):
    """What every server is to have: the promoted version, and names that it keeps."""

    version: int
    adapter: Adapter
    keep: frozenset[str]


async def run_deployer(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> int | None:
    """Deploy what is promoted until a stop is asked for, through trouble with the broker, the store or a server.

    Returns:
        The version that all servers answered with last.

    Raises:
        ConfigError: `registry.url` is wrong, the adapter cannot be written, or the versions are of another model.
    """
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown)
    servers = servers_of(settings.deploy)
    folders = AdapterFolders(settings.deploy, settings.task, federation.name)
    # A store and servers may be slow: each has a thread of its own, so that none waits for another.
    async with Offload(1) as fetching, Offload(len(servers)) as calling:
        promoted = Promoted(federation, settings.registry, _weights, fetching)
        deployer = Deployer(federation, promoted, folders, servers, calling, settings.deploy.check_seconds)
        await deployer.run()
    return deployer.deployed


def _weights(layout: Layout, weights: Tensor) -> tuple[Layout, Tensor]:
    return layout, weights.clone()


class Deployer:
    """Deploys while `run` runs."""

    def __init__(
        self,
        federation: Federation,
        promoted: Promoted,
        folders: AdapterFolders,
        servers: Sequence[Server],
        calling: Offload,
        check_seconds: float,
    ) -> None:
        self._federation = federation
        self._promoted = promoted
        self._folders = folders
        self._servers = servers
        self._calling = calling
        self._check_seconds = check_seconds
        self._seen: Promotion | None = None
        self._wanted: _Wanted | None = None
        self._changed = asyncio.Event()
        self._at: dict[str, int] = {}  # the version of each server, by its URL

    @property
    def deployed(self) -> int | None:
        """The version that all servers answer with; None where they differ or have none."""
        versions = {self._at.get(server.url) for server in self._servers}
        return next(iter(versions)) if len(versions) == 1 else None

    async def run(self) -> None:
        """Deploy until a stop is asked for."""
        settling = (self._settle(server) for server in self._servers)
        await run_while(self._keep_following(), self._promoted.run(), *settling)

    async def _keep_following(self) -> None:
        await self._federation.keep_trying(self._follow, "what is deployed stays; looking for promotions again")

    async def _follow(self) -> None:
        federation = self._federation
        if not await federation.wait_for_topics(federation.topics.models, federation.topics.control):
            return
        async with contextlib.AsyncExitStack() as stack:
            control = await federation.until_stop(stack.enter_async_context(federation.control()))
            met(BROKER)
            while not federation.shutdown.requested:
                if control.promoted is not None and control.promoted != self._seen:
                    await self._want(control.promoted)
                await control.poll(_POLL_SECONDS)

    async def _want(self, promotion: Promotion) -> None:
        """Write the folder of a promoted version and tell the servers. One that is not there yet is sought again."""
        found = await self._federation.until_stop(self._promoted.find(promotion.version))
        if found is None:
            return
        adapter = await self._federation.run(self._folders.adapter, found)
        numbers = (promotion.version, *promotion.history[-1:])
        keep = frozenset(self._folders.name(number) for number in numbers)
        self._wanted, self._seen = _Wanted(promotion.version, adapter, keep), promotion
        self._promoted.forget()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _settle(self, server: Server) -> None:
        """Keep one server at what is promoted."""
        shutdown, clock = self._federation.shutdown, self._federation.clock
        while not shutdown.requested:
            changed = self._changed
            attempt = partial(self._bring, server)
            await keep_trying(attempt, shutdown, "asking again", trouble=ServerError, need=server.url, clock=clock)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await changed.wait()

    async def _bring(self, server: Server) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        asked_for = await self._calling.run(server.ensure, wanted.adapter)
        if self._at.get(server.url) != wanted.version:
            self._at[server.url] = wanted.version
            logger.info("version %d is deployed at %s: ask for %s", wanted.version, server.url, asked_for)
            if self.deployed is not None:
                DEPLOYED.set(self.deployed)
        await self._calling.run(server.drop, self._folders.name(""), wanted.keep)
