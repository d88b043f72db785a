"""A whole federation in one process: every role is a coroutine over the in-process broker."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.events import follow_events
from llmos_stream.registry import warm_start_of
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.training import load_task, use_threads
from llmos_stream.training.model_evaluator import is_measurable
from llmos_stream.types import Event, TopicKind


async def run_embedded(
    settings: Settings, clients: Sequence[Settings], take: Callable[[Event], object], shutdown: Shutdown
) -> None:
    """Run a federation with these clients until the stop rule or a request ends it; give every event to `take`.

    Versions are measured where the task has something to measure them on.
    """
    use_threads(settings.runtime)
    over = Shutdown()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(MemoryBroker())
        # Two pools, so that the aggregator does not wait for a thread that trains.
        serving = await stack.enter_async_context(Offload(settings.runtime.workers))
        training = await stack.enter_async_context(Offload(settings.runtime.workers))

        async def client(own: Settings) -> int:
            state = ClientState(own.client.id or "", None)
            return await run_client(broker, own, load_task(own.task, own.client), state, training, shutdown)

        async def roles() -> None:
            try:
                task = await serving.run(load_task, settings.task, settings.client)
                initial, warm = partial(initial_of, task, settings), warm_start_of(settings)
                batch_size = settings.evaluator.batch_size
                measurable = await serving.run(is_measurable, task, settings.task, batch_size)
                await run_all(
                    run_aggregator(broker, settings, initial, serving, shutdown, warm_start=warm),
                    *([run_evaluator(broker, settings, task, serving, shutdown)] if measurable else []),
                    *map(client, clients),
                )
            finally:
                over.request()

        topics = Topics(settings.federation.name)
        counted = {TopicKind.CONTROL, TopicKind.EVALUATIONS}  # by the aggregator
        await run_all(roles(), follow_events(broker, topics, take, over, counted=counted))
