"""The roles of a run, over a broker that strikes them: real aggregators, and real clients."""

import random
from pathlib import Path

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import FederationFinished
from llmos_stream.log.federation import Federation
from llmos_stream.roles.aggregator import run_aggregator
from llmos_stream.roles.client import Client, ClientState
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import keep_trying
from llmos_stream.testing import FaultyBroker
from tests.faults.faulty import Strikes
from tests.faults.injector import Injector
from tests.faults.journal import Journal
from tests.faults.plan import AGGREGATOR, Plan
from tests.faults.sites import Site, initial, site_of

_OVERLAPS = 0.5
_PATIENCE_SECONDS = (0.0, 0.05, 0.3, 0.3)


def journal_of(folder: Path, role: str) -> Journal:
    return Journal(folder / role / "journal")


def state_of(folder: Path, role: str) -> Path:
    return folder / role / "state"


async def drive(
    role: str, broker: Broker, injector: Injector, settings: Settings, plan: Plan, folder: Path, shutdown: Shutdown
) -> None:
    """Run one role to its end: an aggregator until it is asked to stop, a client until its updates are published."""
    strikes = Strikes(injector, Topics(settings.federation.name))
    injector.broker = faulty = FaultyBroker(broker, strikes)
    try:
        if role.startswith(AGGREGATOR):
            async with Offload(1) as offload:
                await run_aggregator(faulty, settings, lambda: initial(plan, settings), offload, shutdown)
        else:
            site = site_of(plan, role, settings, folder)
            await keep_trying(
                lambda: _publish_all(role, site, faulty, strikes, settings, plan, folder, shutdown),
                shutdown,
                "starting again",
            )
    except FederationFinished:
        pass  # that is an end too, for one who comes back after it


async def _publish_all(
    name: str,
    site: Site,
    broker: FaultyBroker,
    strikes: Strikes,
    settings: Settings,
    plan: Plan,
    folder: Path,
    shutdown: Shutdown,
) -> None:
    journal = journal_of(folder, name)
    async with Offload(1) as offload:
        federation = Federation(broker, strikes.topics, settings.wire, offload, shutdown)
        if not await federation.wait_for_topics(*federation.topics.names):
            return
        with ClientState(name, state_of(folder, name)) as state:
            async with Client(federation, name, site.layout, settings.codec, state) as client:
                version = None
                while version is None and not shutdown.requested:
                    if client.finished:
                        return
                    version = await client.newest(None, 5.0)
                await client.send_unsent()
                while version is not None and len(journal.numbers("sending")) < plan.updates:
                    if shutdown.requested:
                        break
                    # What was begun before a kill is on the client's disk by now, or its training is lost.
                    number = max(journal.numbers("begun"), default=-1) + 1
                    journal.write("begun", number)
                    start = await client.start_from(version)
                    trained = await offload.run(site.learn, number, version.head.number, start)
                    if random.Random(f"{plan.seed} {name} {number} overlap").random() < _OVERLAPS:  # noqa: S311
                        await client.launch(await client.put(trained))
                        await client.listen(0.0)  # as one that trains on does meanwhile
                        await client.land()
                    else:
                        await client.publish(trained)
                    journal.write("published", number)
                    patience = random.Random(f"{plan.seed} {name} {number}").choice(_PATIENCE_SECONDS)  # noqa: S311
                    version = await client.newest(version.head.number, patience) or version
    if strikes.holds:
        async with broker.inner.producer() as producer:
            await strikes.send_held(producer)
