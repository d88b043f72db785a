"""A command that is a role: connected to its broker, under signals, answering operators."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmos_stream import __version__
from llmos_stream.config import Settings
from llmos_stream.runtime import BROKER, ExitCode, Health, Offload, Shutdown, met, run_all, run_process, run_while
from llmos_stream.telemetry.tracing import traced
from llmos_stream.web.health_endpoints import HealthEndpoints, serve_health_endpoints

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.log.federation import Federation
    from llmos_stream.training import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """How a role ended: whether in good order, what it came to if it had begun, and the exit status."""

    in_order: bool
    result: T | None
    status: ExitCode


def federation_of(
    broker: "Broker", settings: Settings, offload: Offload, shutdown: Shutdown | None = None
) -> "Federation":
    """Return the federation that `settings` name, on `broker`. A command without a stop leaves out `shutdown`."""
    from llmos_stream.broker import Topics
    from llmos_stream.log.federation import Federation

    return Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown or Shutdown())


def run_role(
    name: str,
    settings: Settings,
    role: Callable[["Broker", "Task", Offload, Shutdown], Awaitable[T]],
    *,
    patient: bool = True,
    needs: Iterable[str] = (BROKER,),
    endless: bool = False,
) -> Ended[T]:
    """As `run_connected`, for a role that needs the task."""

    async def with_task(broker: "Broker", offload: Offload, shutdown: Shutdown) -> T:
        from llmos_stream.training import load_task

        return await role(broker, await offload.run(load_task, settings.task, settings.client), offload, shutdown)

    return run_connected(name, settings, with_task, patient=patient, needs=needs, endless=endless)


def run_connected(
    name: str,
    settings: Settings,
    role: Callable[["Broker", Offload, Shutdown], Awaitable[T]],
    *,
    patient: bool = True,
    needs: Iterable[str] = (BROKER,),
    beside: Callable[[Shutdown], Coroutine[Any, Any, None]] | None = None,
    endless: bool = False,
    computes: bool = True,
) -> Ended[T]:
    """Connect and run the role under signals, answering operators meanwhile where a port is set.

    A role may be started before its broker and waits for it; one that is not `patient` fails with one clear error.
    It is ready while it has all that it `needs`. `beside` runs from the beginning, whether the broker answers or not,
    until a stop is asked for. Ctrl-C is how an `endless` role ends; another one is interrupted by it.
    One that `computes` nothing goes without torch, which takes seconds to import.
    """
    result: list[T] = []
    interrupted = False

    async def process(shutdown: Shutdown) -> None:
        nonlocal interrupted
        from llmos_stream.broker import connect
        from llmos_stream.runtime.retry import keep_trying, until_stop
        from llmos_stream.storage.spool import room_in

        if computes:
            from llmos_stream.training import use_threads

            use_threads(settings.runtime)
        room_in(settings.wire.spool_dir)  # every role that reads messages comes to need it
        health = Health(needs, settings.operations.stuck_seconds)
        health.attach()
        async with AsyncExitStack() as stack:
            endpoints = HealthEndpoints(health, facts, folders=_folders(name, settings))
            stack.enter_context(serve_health_endpoints(settings.operations, endpoints))

            async def connected() -> "Broker":
                return await until_stop(stack.enter_async_context(connect(settings.broker)), shutdown)

            async def main() -> None:
                broker = await (keep_trying(connected, shutdown, "connecting again") if patient else connected())
                if broker is None:
                    return
                met(BROKER)
                offload = await stack.enter_async_context(Offload(settings.runtime.workers))
                result.append(await role(broker, offload, shutdown))

            both = run_all(main(), beside(shutdown)) if beside else main()
            await run_while(both, health.beat())
            interrupted = shutdown.interrupted and not endless

    facts = {"role": name, "federation": settings.federation.name, "version": __version__}
    with traced(settings.tracing, facts):
        code = run_process(process, settings.runtime.stop_seconds)
    in_order = code is ExitCode.DONE
    return Ended(in_order, result[0] if result else None, ExitCode.INTERRUPTED if in_order and interrupted else code)


def _folders(name: str, settings: Settings) -> dict[str, Path]:
    """Where a role writes to disk."""
    folders, state = {"spool": settings.wire.spool_dir or Path(gettempdir())}, settings.client.state_dir
    return {**folders, "state": state} if name == "client" and state is not None else folders
