"""Health: ready with everything that is needed, alive while the event loop comes round."""

import asyncio
from contextvars import copy_context

from llmos_stream.runtime import Health, met, run_while
from llmos_stream.runtime.health import lost


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ready_once_all_that_is_needed_is_there() -> None:
    health = Health(["broker", "model"])
    assert health.missing == {"broker": "not yet", "model": "not yet"}
    health.met("broker")
    assert (health.ready, health.conditions) == (False, {"broker": True, "model": False})
    health.met("model")
    assert (health.ready, health.missing) == (True, {})
    health.lost("broker", "no answer")
    assert (health.ready, health.missing) == (False, {"broker": "no answer"})
    health.met("broker")
    health.lost("tea", "cold")  # nobody needs it
    assert health.ready


def test_a_loop_that_does_not_come_round_is_neither_alive_nor_ready() -> None:
    clock = _Clock()
    health = Health([], stuck_seconds=5.0, clock=clock)
    assert health.ready
    clock.now += 5.0
    assert (health.alive, health.ready) == (False, False)


async def test_beating_keeps_it_alive() -> None:
    clock = _Clock()
    health = Health([], stuck_seconds=5.0, clock=clock)
    clock.now += 6.0
    assert not health.alive

    async def after_a_beat() -> bool:
        await asyncio.sleep(0)  # the other has its turn
        return health.alive

    assert await run_while(after_a_beat(), health.beat())


async def test_what_a_task_reports_reaches_the_health_of_its_context() -> None:
    health, other = Health(["broker"]), Health(["broker"])

    async def role() -> None:
        met("broker")

    async def process() -> None:
        health.attach()
        await asyncio.gather(role())

    await asyncio.create_task(process(), context=copy_context())
    assert (health.ready, other.ready) == (True, False)
    lost("broker", "nobody listens here")
    assert health.ready
