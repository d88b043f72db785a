"""`llmos-stream monitor`: everything that happens in a federation, as numbers for Prometheus and as a live page."""

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, err, print_json, say
from llmos_stream.cli.flags import load_settings
from llmos_stream.cli.process import run_connected
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plural
from llmos_stream.runtime import ExitCode, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.runtime.metrics import EventMetrics
    from llmos_stream.types import Event


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "monitor",
        run_monitor_command,
        text="follow what happens in a federation, export it for Prometheus, and show it as a live page",
        sections=("federation", "broker", "registry", "runtime", "operations", "dashboard"),
        examples=(
            "  llmos-stream monitor\n"
            "  llmos-stream monitor --dashboard.port 8090              then open http://127.0.0.1:8090/\n"
            "  llmos-stream monitor --quiet --operations.port 9464     then read http://127.0.0.1:9464/metrics"
        ),
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")


def run_monitor_command(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments)
    follow = _without_page if settings.dashboard.port is None else _with_page()
    seen: Counter[str] = Counter()

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> None:
        from llmos_stream.cli.progress import Progress
        from llmos_stream.reporting import History

        takers: list[Callable[[Event], object]] = [_metrics().observe]
        with ExitStack() as stack:
            if not (arguments.quiet or arguments.json):
                title = f"federation {settings.federation.name}"
                takers.append(stack.enter_context(Progress(History(), err(), title)).take)

            def take(event: "Event") -> None:
                seen[event.kind] += 1
                for taker in takers:
                    taker(event)

            await follow(broker, settings, take, offload, shutdown)

    code = run_connected("monitor", settings, role)
    if code is ExitCode.DONE:
        if arguments.json:
            print_json({"events": {str(kind): count for kind, count in seen.items()}})
        else:
            say(f"{plural(seen.total(), 'event')} seen")
    return code


async def _without_page(
    broker: "Broker", settings: Settings, take: Callable[["Event"], object], offload: Offload, shutdown: Shutdown
) -> None:
    from llmos_stream.roles import follow_events

    await follow_events(broker, settings, take, shutdown)


def _with_page() -> "Callable[..., Awaitable[None]]":
    """Raises ConfigError where the live page's libraries, which are an extra, are not there."""
    try:
        from llmos_stream.dashboard import follow_with_page
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dashboard.port: the live page needs {error.name}; install it with: pip install 'llmos-stream[dashboard]'"
        ) from None
    return follow_with_page


@cache
def _metrics() -> "EventMetrics":
    """Names can be registered once in a process."""
    from llmos_stream.runtime.federation_metrics import FederationMetrics

    return FederationMetrics()
