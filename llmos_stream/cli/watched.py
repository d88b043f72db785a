"""A whole federation in one command, watched live: in this process, or a process for each role on a Kafka."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from llmos_stream import __version__
from llmos_stream.cli.common import err, note
from llmos_stream.config import Settings
from llmos_stream.runtime import ExitCode, Shutdown, run_process
from llmos_stream.telemetry.tracing import traced

if TYPE_CHECKING:
    from llmos_stream.demo import Scenario
    from llmos_stream.reporting import History


@dataclass(frozen=True, slots=True)
class Watched:
    """How it ended, what was seen, how long it took, and the settings that it ran with."""

    code: ExitCode
    history: "History"
    seconds: float
    settings: Settings


def named(settings: Settings, command: str, *, lasting: bool) -> Settings:
    """With the name that is given for the federation, or else one for this run.

    A Kafka that stays (`lasting`) remembers the last run, and a federation that has ended takes no updates.
    """
    if "name" in settings.federation.model_fields_set:
        return settings
    name = f"{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if lasting else command
    if lasting:
        note(f"federation {name}; afterwards: llmos-stream versions list --federation.name {name}")
    return settings.changed(federation={"name": name})


def run_watched(
    command: str, make: Callable[[Settings], "Scenario"], settings: Settings, *, on_kafka: bool, resume: bool = False
) -> Watched:
    """Run the federation that `make` makes of the settings.

    On Kafka that is `broker.bootstrap_servers` where set, else one that is started for this run.
    """
    from llmos_stream.broker import LocalKafka
    from llmos_stream.cli.progress import ProgressDisplay
    from llmos_stream.demo import run_processes
    from llmos_stream.federated.embedded import run_embedded
    from llmos_stream.reporting import History

    console, history = err(), History()
    with ExitStack() as stack:
        if not on_kafka:
            settings = settings.changed(broker={"bootstrap_servers": None})
        elif settings.broker.bootstrap_servers is None:
            with console.status(f"starting a Kafka for the {command} (the first time it is fetched by Maven) ..."):
                kafka = stack.enter_context(LocalKafka())
            settings = settings.changed(broker={"bootstrap_servers": kafka.bootstrap_servers})
        scenario = make(settings)

        async def run_roles(shutdown: Shutdown) -> None:
            if on_kafka:
                await run_processes(scenario, progress.take, shutdown, resume=resume)
            else:
                await run_embedded(scenario.settings, scenario.clients, progress.take, shutdown)

        where = f"Kafka at {settings.broker.bootstrap_servers}" if on_kafka else "embedded broker"
        facts = {"role": command, "federation": settings.federation.name, "version": __version__}
        begun = monotonic()
        stack.enter_context(traced(settings.tracing, facts))
        with ProgressDisplay(history, console, f"{len(scenario.clients)} clients, {where}") as progress:
            code = run_process(run_roles)
        return Watched(code, history, monotonic() - begun, settings)
