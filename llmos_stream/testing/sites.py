"""A whole run in one process: an aggregator, and sites that train on data of their own."""

import asyncio
from collections.abc import Mapping

from torch import nn

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import newest_version
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.training import load_task, state_with
from llmos_stream.training.states import load_state

_PATIENCE_SECONDS = 90.0


def run_sites(settings: Settings, sites: Mapping[str, str], patience_seconds: float = _PATIENCE_SECONDS) -> nn.Module:
    """Train the task of `settings` at these sites, until the run ends by `stop.max_versions`; return its last version.

    Args:
        settings: Of all roles; `task.entry` names the task.
        sites: Each client's id, and its `client.data`.
        patience_seconds: How long the run may take.

    Raises:
        TimeoutError: It has not ended by then. Other errors are those of the roles.
    """
    return asyncio.run(_run(settings, sites, patience_seconds))


async def _run(settings: Settings, sites: Mapping[str, str], patience_seconds: float) -> nn.Module:
    broker, shutdown = MemoryBroker(), Shutdown()
    task = load_task(settings.task, settings.client)
    clients = [settings.changed(client={"id": name, "data": data}) for name, data in sites.items()]
    # Two pools, so that the aggregator does not wait for a thread that trains.
    async with Offload(settings.runtime.workers) as serving, Offload(settings.runtime.workers) as training:
        try:
            async with asyncio.timeout(patience_seconds):
                await run_all(
                    run_aggregator(broker, settings, lambda: initial_of(task, settings), serving, shutdown),
                    *(
                        run_client(
                            broker,
                            own,
                            load_task(own.task, own.client),
                            ClientState(own.client.id or "", None),
                            training,
                            shutdown,
                        )
                        for own in clients
                    ),
                )
        except TimeoutError:
            raise TimeoutError(
                f"the run has not ended after {patience_seconds:g} s; stop.max_versions ends it"
            ) from None
        federation = Federation(broker, Topics(settings.federation.name), settings.wire, serving, shutdown)
        async with federation.control() as control, federation.reader(federation.topics.models, "latest") as models:
            version = await newest_version(control, federation.replica(models), patience_seconds)
    if version is None:
        raise TimeoutError("the run has ended without a version")
    model = task.model()
    load_state(model, state_with(model, version.layout, version.weights))
    return model
