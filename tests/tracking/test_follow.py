"""From the log to a tracker: live and afterwards it gets the same, once."""

import asyncio

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import TopicSettings
from llmos_stream.errors import NotFound, TopicMissing
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.tracking.follow import Tracking
from llmos_stream.tracking.sink import Run, TrackerUnavailable
from tests.federation import federation_of
from tests.roles.aids import aggregator, settings_for
from tests.tracking.aids import VERSIONS, Kept, take_steps, track, write_run


async def test_what_is_tracked_of_a_run() -> None:
    kept = Kept()
    async with MemoryBroker() as broker:
        await write_run(broker, "ward")
        await track(broker, "ward", kept)
    assert kept.run is not None
    assert kept.run.name.startswith("ward-20")
    assert kept.series("version/contributions") == {0: 0, **dict.fromkeys(range(1, VERSIONS + 1), 1)}
    assert kept.series("version/examples") == {number: 9.0 + number for number in range(1, VERSIONS + 1)}
    assert kept.series("version/train_loss") == {number: 1 / number for number in range(1, VERSIONS + 1)}
    assert set(kept.series("version/mean_norm").values()) == {2.0}
    assert kept.series("version/mean_staleness") == dict.fromkeys(range(VERSIONS + 1), 0.0)
    assert kept.series("total/updates") == {number: number for number in range(VERSIONS + 1)}
    assert kept.series("total/refused")[VERSIONS] == 1
    assert kept.series("client/client-0/updates") == {1: 1, 3: 2, 5: 3}
    assert kept.series("client/client-1/loss") == {1: 1 / 2, 3: 1 / 4}
    assert list(kept.series("client/client-1/refused").values()) == [1]
    assert kept.series("evaluation/accuracy") == {number + 1: 0.1 * number for number in range(VERSIONS)}
    assert "evaluation/F1 _macro_" in {point.name for point in kept.points}
    assert kept.settings["aggregation.buffer_size"] == "1"
    assert "build.torch" in kept.settings
    assert kept.end is not None
    assert kept.end.reason == "max_versions"
    assert len({(point.name, point.step) for point in kept.points}) == len(kept.points)


@pytest.mark.timeout(300)
async def test_live_and_afterwards_give_the_same(broker: Broker, federation: str) -> None:
    live, later = Kept(), Kept()
    settings = settings_for(federation, stop={"max_versions": VERSIONS})
    shutdown = Shutdown()
    async with aggregator(broker, settings) as running, Offload(2) as offload:
        await running.version(0)
        tracking = Tracking(federation_of(broker, settings, offload, shutdown), [live])
        async with asyncio.TaskGroup() as group:
            group.create_task(tracking.follow())  # ends with the run, once the last version has been measured
            await take_steps(running, range(VERSIONS))
    assert shutdown.requested
    await track(broker, federation, later)
    assert {point for point in live.points if not point.name.startswith("evaluation/")} == {
        point for point in later.points if not point.name.startswith("evaluation/")
    }
    assert sorted(live.points) == sorted(later.points)
    assert (live.settings, live.end, live.run) == (later.settings, later.end, later.run)


async def test_it_goes_on_where_it_stopped() -> None:
    kept = Kept()
    settings = settings_for("ward")
    async with MemoryBroker() as broker, aggregator(broker, settings) as running:
        await running.version(0)
        await take_steps(running, range(2))
        first = await track(broker, "ward", kept)
        count = len(kept.points)
        assert first.written == {"memory:": count}
        assert (await track(broker, "ward", kept)).written == {"memory:": 0}
        await take_steps(running, range(2, 4))
        await track(broker, "ward", kept)
    assert len(kept.points) > count
    assert len({(point.name, point.step) for point in kept.points}) == len(kept.points)
    assert set(kept.series("evaluation/loss")) == {1, 2, 3, 4}


async def test_clients_beyond_the_limit_have_no_series() -> None:
    kept = Kept()
    async with MemoryBroker() as broker:
        await write_run(broker, "ward")
        await track(broker, "ward", kept, clients=1)
    assert {point.name.split("/")[1] for point in kept.points if point.name.startswith("client/")} == {"client-0"}
    assert kept.series("total/updates")[VERSIONS] == VERSIONS


class _Unsteady(Kept):
    """Fails now and then in the middle of a batch, half of which it has taken."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def write(self, points):  # type: ignore[no-untyped-def]
        if self.points and self.failures:
            self.failures -= 1
            super().write(points[: len(points) // 2])
            raise TrackerUnavailable("memory: does not answer")
        super().write(points)


@pytest.mark.timeout(60)
async def test_a_tracker_that_is_away_for_a_while_gets_all_of_it_once() -> None:
    unsteady, steady = _Unsteady(1), Kept()
    settings = settings_for("ward", stop={"max_versions": VERSIONS})
    async with MemoryBroker() as broker, aggregator(broker, settings) as running, Offload(2) as offload:
        await running.version(0)
        tracking = Tracking(federation_of(broker, settings, offload), [unsteady, steady])
        async with asyncio.TaskGroup() as group:
            group.create_task(tracking.follow())
            await running.until(lambda: bool(unsteady.points))
            await take_steps(running, range(VERSIONS))
    assert not unsteady.failures
    assert sorted(unsteady.points) == sorted(steady.points)
    assert unsteady.end is not None


class _Away(Kept):
    """Never there."""

    def open(self, run: Run) -> list[tuple[str, int]]:
        raise TrackerUnavailable(f"memory: {run.name} is not there")


async def test_what_is_wrong_at_the_beginning_is_told_at_once() -> None:
    async with MemoryBroker() as broker:
        with pytest.raises(TopicMissing):
            await track(broker, "nobody", Kept())
        async with aggregator(broker, settings_for("ward")) as running:
            await running.version(0)
            with pytest.raises(TrackerUnavailable):
                await track(broker, "ward", _Away())


async def test_a_stop_ends_it_cleanly_while_the_run_goes_on() -> None:
    kept, shutdown, settings = Kept(), Shutdown(), settings_for("ward")
    async with MemoryBroker() as broker, aggregator(broker, settings) as running, Offload(2) as offload:
        await running.version(0)
        tracking = Tracking(federation_of(broker, settings, offload, shutdown), [kept])
        async with asyncio.TaskGroup() as group:
            group.create_task(tracking.follow())
            await take_steps(running, range(2))
            await running.until(lambda: 2 in kept.series("version/contributions"))
            shutdown.request()
    assert kept.end is None
    assert kept.settings


def test_a_run_keeps_its_name_when_the_log_has_lost_its_beginning() -> None:
    whole, later = Run("ward", 1_760_000_000_000), Run("ward", 1_760_000_100_000, is_whole=False)
    assert whole.name == "ward-20251009-085320"
    assert later.name_among([]) == later.name
    assert later.name_among(["ward-7-20260101-000000", whole.name, "ward-20250101-000000"]) == whole.name
    assert whole.name_among(["ward-20260101-000000"]) == whole.name


async def test_a_federation_without_a_version() -> None:
    async with MemoryBroker() as broker, Offload(1) as offload:
        federation = federation_of(broker, settings_for("ward"), offload)
        await broker.create_topics(federation.topics.specs(TopicSettings(replication_factor=1)))
        with pytest.raises(NotFound, match="no version yet"):
            await Tracking(federation, [Kept()]).once()
