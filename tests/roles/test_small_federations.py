"""Whole federations of few clients in virtual time: on default settings they are as quick as on those that fit them."""

import asyncio

import pytest

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.config import Settings, load
from llmos_stream.core import Rule
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import LoopClock, run_in_virtual_time
from llmos_stream.training import load_task

_VERSIONS = 6


def _settings(buffer_size: int | None, shard: int = 0, train_seconds: float = 1.0) -> Settings:
    return load(
        {
            "federation": {"name": "small"},
            "task": {"entry": "noop:100"},
            "aggregation": {} if buffer_size is None else {"buffer_size": buffer_size},
            "stop": {"max_versions": _VERSIONS},
            "client": {"id": f"c-{shard}", "shard": shard, "min_train_seconds": train_seconds},
        }
    )


def _run(buffer_size: int | None, *train_seconds: float) -> tuple[float, list[int]]:
    """How many seconds the versions take, and at how many updates each was made."""

    async def main(clock: LoopClock) -> tuple[float, list[int]]:
        settings, broker = _settings(buffer_size), MemoryBroker(clock=clock.monotonic)
        task = load_task(settings.task, settings.client)
        async with Offload(1) as offload, broker:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, Shutdown(), clock)
                )
                for shard, seconds in enumerate(train_seconds):
                    own, state = _settings(buffer_size, shard, seconds), ClientState(f"c-{shard}", None)
                    group.create_task(run_client(broker, own, task, state, offload, Shutdown(), clock))
            federation = Federation(broker, Topics("small"), settings.wire, offload, Shutdown(), clock)
            made, sizes = clock.monotonic(), []
            async with version_index(broker, federation.topics.models) as index:
                for number in range(1, _VERSIONS + 1):
                    found = await index.find(number)
                    assert found is not None
                    sizes.append(Rule.of(found.head.rule).capacity)
            return made, sizes

    return run_in_virtual_time(main)


@pytest.mark.parametrize("train_seconds", [1.0, 20.0])
def test_two_clients_are_as_quick_as_with_the_best_buffer_that_takes_both(train_seconds: float) -> None:
    both = (train_seconds, 1.1 * train_seconds)
    seconds, sizes = _run(None, *both)
    fixed = {size: _run(size, *both)[0] for size in (2, 3, 4)}
    assert seconds <= 1.2 * min(fixed.values()), fixed
    assert sizes[0] == 1
    assert sizes[-3:] == [2, 2, 2]


def test_a_buffer_that_is_too_large_takes_clients_to_the_deadline() -> None:
    assert _run(4, 1.0, 1.1)[0] > 2 * _run(None, 1.0, 1.1)[0]


@pytest.mark.parametrize("train_seconds", [1.0, 20.0])
def test_one_client_is_as_quick_as_with_the_best_buffer(train_seconds: float) -> None:
    seconds, sizes = _run(None, train_seconds)
    fixed = {size: _run(size, train_seconds)[0] for size in (1, 2, 4)}
    assert seconds <= 1.2 * min(fixed.values()), fixed
    assert sizes == [1] * _VERSIONS
