"""Promoting a version: telling everyone which one an operator wants served, and taking it back."""

from collections.abc import Callable
from time import time

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.log import ControlView, Promotion, version_index
from llmos_stream.registry.store import open_store
from llmos_stream.runtime import Offload
from llmos_stream.wire.control import PROMOTED, dump_promotion


async def promoted(broker: Broker, settings: Settings) -> Promotion | None:
    """What is promoted now. Raises TopicMissing."""
    async with broker.reader([Topics(settings.federation.name).control], start="earliest") as reader:
        control = ControlView(reader)
        await control.catch_up()
        return control.promoted


async def promote(broker: Broker, settings: Settings, number: int, offload: Offload) -> Promotion:
    """Promote a version; one that is promoted already stays so. Raises ConfigError for one that is nowhere.

    Two operators at once: the last one's word counts.
    """
    before = await promoted(broker, settings)
    if before is not None and before.version == number:
        return before
    await _check(broker, settings, number, offload)
    after = Promotion(number, (), _now()) if before is None else before.followed_by(number, _now())
    return await _write(broker, settings, after)


async def roll_back(broker: Broker, settings: Settings, offload: Offload) -> Promotion:
    """Promote the version that was promoted before. Raises ConfigError where there was none, or it is gone."""
    before = await promoted(broker, settings)
    after = None if before is None else before.rolled_back(_now())
    if after is None:
        reason = "nothing is promoted" if before is None else f"version {before.version} is the first one promoted"
        raise ConfigError(
            f"there is nothing to go back to: {reason}; promote a version: llmos-stream versions promote N"
        )
    await _check(broker, settings, after.version, offload)
    return await _write(broker, settings, after)


async def _check(broker: Broker, settings: Settings, number: int, offload: Offload) -> None:
    async with version_index(broker, Topics(settings.federation.name).models) as index:
        if await index.pointer(number) is not None:
            return
    if settings.registry.url is None:
        raise ConfigError(f"version {number} is not in the log; name the registry that has it with registry.url")
    has: Callable[[int], bool] = open_store(settings.registry, settings.federation.name).has
    if not await offload.run(has, number):
        raise ConfigError(f"version {number} is neither in the log nor in the registry; see llmos-stream versions list")


async def _write(broker: Broker, settings: Settings, promotion: Promotion) -> Promotion:
    async with broker.producer() as producer:
        await producer.send(Topics(settings.federation.name).control, dump_promotion(promotion), key=PROMOTED)
    return promotion


def _now() -> int:
    return int(time() * 1000)
