"""`llmos-stream monitor`: everything that happens in a federation, as numbers for Prometheus and as a live page."""

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer, err
from llmos_stream.cli.process import federation_of, run_connected
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, install
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.dashboard import LivePage
    from llmos_stream.telemetry.event_metrics import EventMetrics
    from llmos_stream.types import Event


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "monitor",
        _run,
        text="follow what happens in a federation, export it for Prometheus, and show it as a live page",
        sections=("federation", "broker", "registry", "runtime", "operations", "dashboard"),
        examples=(
            "  llmos-stream monitor\n"
            "  llmos-stream monitor --dashboard.port 8090              then open http://127.0.0.1:8090/\n"
            "  llmos-stream monitor --quiet --operations.port 9464     then read http://127.0.0.1:9464/metrics"
        ),
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    page = None if settings.dashboard.port is None else _page(settings)
    seen: Counter[str] = Counter()

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> None:
        from llmos_stream.broker import Topics
        from llmos_stream.cli.progress import ProgressDisplay
        from llmos_stream.log.events import follow_events
        from llmos_stream.reporting import History

        takers: list[Callable[[Event], object]] = [_metrics().observe]
        with ExitStack() as stack:
            if not (arguments.quiet or arguments.json):
                title = f"federation {settings.federation.name}"
                takers.append(stack.enter_context(ProgressDisplay(History(), err(), title)).take)

            def take(event: "Event") -> None:
                seen[event.kind] += 1
                for taker in takers:
                    taker(event)

            if page is None:
                await follow_events(broker, Topics(settings.federation.name), take, shutdown)
            else:
                await page.follow(broker, take, shutdown)

    beside = None if page is None else page.show
    ended = run_connected("monitor", settings, role, beside=beside, endless=True, computes=False)
    if ended.in_order:
        counts = {str(kind): count for kind, count in seen.items()}
        answer(arguments, {"events": counts}, f"{plural(seen.total(), 'event')} seen")
    return ended.status


def _page(settings: Settings) -> "LivePage":
    """Raises ConfigError where the live page's libraries, which are an extra, are not there."""
    try:
        from llmos_stream.dashboard import LivePage
    except ModuleNotFoundError as error:
        raise ConfigError(f"dashboard.port: the live page needs {error.name}; {install('dashboard')}") from None

    async def finish(broker: "Broker") -> object:
        from llmos_stream.roles.aggregator.finishing import finish_run

        async with Offload(1) as offload:
            return await finish_run(federation_of(broker, settings, offload), settings)

    return LivePage(settings, finish)


@cache
def _metrics() -> "EventMetrics":
    """Names can be registered once in a process."""
    from llmos_stream.telemetry.federation_metrics import FederationMetrics

    return FederationMetrics()
