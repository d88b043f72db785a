"""The record of a promotion, and promoting and taking back on both brokers."""

import orjson
import pytest

from llmos_stream.broker import Broker, Topics
from llmos_stream.errors import NotFound
from llmos_stream.log import ControlView, Pointer, Promotion
from llmos_stream.log.index import version_index
from llmos_stream.registry import promote, promoted, roll_back
from llmos_stream.runtime import Offload
from llmos_stream.wire.control import PROMOTED, dump_setting, load_promotion
from tests.registry.aids import AT, Folder, registry_settings, store_of, version_of
from tests.roles.aids import LAYOUT, aggregator, control_of, delta_of, settings_for, update


def test_a_promotion_remembers_those_before_it() -> None:
    first = Promotion(3, (), 1)
    third = first.followed_by(5, 2).followed_by(4, 3)
    assert third == Promotion(4, (3, 5), 3)
    assert third.rolled_back(9) == Promotion(5, (3,), 9)
    assert first.rolled_back(9) is None


def test_its_memory_is_bounded_and_what_is_forgotten_is_the_oldest() -> None:
    promotion = Promotion(0, (), 0)
    for version in range(1, 41):
        promotion = promotion.followed_by(version, version)
    assert promotion.version == 40
    assert promotion.history == tuple(range(8, 40))
    for version in range(39, 7, -1):
        back = promotion.rolled_back(0)
        assert back is not None
        assert back.version == version
        promotion = back
    assert promotion.rolled_back(0) is None


def test_it_is_read_as_it_was_written() -> None:
    promotion = Promotion(7, (1, 2), 1_700_000_000_000)
    data = dump_setting(promotion)
    assert orjson.loads(data) == {"version": 7, "history": [1, 2], "time_ms": 1_700_000_000_000}
    assert load_promotion(orjson.loads(data)) == promotion
    too_long = {"version": 7, "history": list(range(100)), "time_ms": 0}
    assert load_promotion(too_long).history == tuple(range(68, 100))


async def test_promote_and_roll_back(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, versions={"full_every": 2})
    async with aggregator(broker, settings) as running, Offload(1) as offload:
        for number in (1, 2, 3):
            await running.send(update(delta_of(1.0), sequence=number, base_version=number - 1))
            await running.version(number)
        assert await promoted(broker, Topics(settings.federation.name)) is None
        with pytest.raises(NotFound, match="nothing to go back to: nothing is promoted"):
            await roll_back(broker, Topics(settings.federation.name), settings.registry, offload)
        for number in (1, 3, 2):
            await promote(broker, Topics(settings.federation.name), settings.registry, number, offload)
        again = await promote(broker, Topics(settings.federation.name), settings.registry, 2, offload)
        assert (again.version, again.history) == (2, (1, 3))
        assert await promoted(broker, Topics(settings.federation.name)) == again
        assert (await roll_back(broker, Topics(settings.federation.name), settings.registry, offload)).version == 3
        assert (await roll_back(broker, Topics(settings.federation.name), settings.registry, offload)).version == 1
        with pytest.raises(NotFound, match="version 1 is the first one promoted"):
            await roll_back(broker, Topics(settings.federation.name), settings.registry, offload)
        for number in (4, -1):
            with pytest.raises(NotFound, match=f"version {number} is not in the log; name the registry"):
                await promote(broker, Topics(settings.federation.name), settings.registry, number, offload)
        now = await promoted(broker, Topics(settings.federation.name))
    assert now is not None
    assert (now.version, now.history) == (1, ())


async def test_a_version_of_the_registry_alone_can_be_promoted(broker: Broker, federation: str, folder: Folder) -> None:
    settings = registry_settings(folder.url, federation)
    store_of(settings).save(version_of(LAYOUT, 70), AT)
    async with aggregator(broker, settings) as running, Offload(1) as offload:
        await running.version(0)
        assert (await promote(broker, Topics(settings.federation.name), settings.registry, 70, offload)).version == 70
        for number in (71, -70):
            with pytest.raises(NotFound, match=f"version {number} is neither in the log nor in the registry"):
                await promote(broker, Topics(settings.federation.name), settings.registry, number, offload)


async def test_a_record_that_cannot_be_read_leaves_the_last_good_one(broker: Broker, federation: str) -> None:
    control = Topics(federation).control
    await broker.create_topics(Topics(federation).specs(settings_for(federation).topics))
    async with broker.producer() as producer:
        for value in (
            dump_setting(Promotion(3, (), 0)),
            b"{}",
            b"\xff",
            b'{"version": 1, "history": 5, "time_ms": 0}',
        ):
            await producer.send(control, value, key=PROMOTED)
    async with broker.reader([control], start="earliest") as reader:
        view = ControlView(reader)
        await view.catch_up()
    assert view.promoted == Promotion(3, (), 0)


async def test_a_version_is_found_with_what_it_stands_on(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation, versions={"full_every": 3})) as running:
        for number in (1, 2, 3, 4):
            await running.send(update(delta_of(1.0), sequence=number, base_version=number - 1))
            await running.version(number)
        control = await control_of(running)
        async with version_index(broker, running.topics.models) as index:
            assert await index.pointer() == control.latest
            first, second, none = [await index.pointer(number) for number in (0, 2, 5)]
        assert isinstance(first, Pointer)
        assert second is not None
        assert (first.full, second.full) == (None, first)
        assert none is None
