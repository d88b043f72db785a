"""A role that runs beside a test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmos_stream.errors import Fenced
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.tasks import in_background
from llmos_stream.testing.log import PATIENCE_SECONDS

T = TypeVar("T")
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class RunningRole(Generic[T]):
    """See `running_role`."""

    task: "asyncio.Task[T]"
    offload: Offload
    shutdown: Shutdown


@asynccontextmanager
async def running_role(
    role: Callable[[Offload, Shutdown], Coroutine[Any, Any, T]], patience_seconds: float = PATIENCE_SECONDS
) -> AsyncIterator[RunningRole[T]]:
    """Run a role until the block ends, and stop it in order then.

    Its error is raised at the block's end, unless another was raised there. One that the test has cancelled, or that
    another has taken over from, is the test's to look at.

    Args:
        role: Makes it, from the threads that it works with and the stop that it obeys.
        patience_seconds: How long it may take to stop.

    Raises:
        TimeoutError: It did not stop in time, and was cancelled.
    """
    shutdown = Shutdown()
    async with Offload(_WORKERS) as offload, in_background(role(offload, shutdown)) as task:
        try:
            yield RunningRole(task, offload, shutdown)
        finally:
            shutdown.request()
            await asyncio.wait([task], timeout=patience_seconds)
        if not task.done():
            raise TimeoutError(f"the role did not stop within {patience_seconds:g} s")
    if not (task.cancelled() or isinstance(task.exception(), Fenced)):
        task.result()
