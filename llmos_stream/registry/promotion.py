"""Promotions: which version an operator wants served everywhere."""

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import RegistrySettings
from llmos_stream.errors import NotFound
from llmos_stream.log import Promotion
from llmos_stream.log.control import open_control
from llmos_stream.log.index import version_index
from llmos_stream.registry.store import open_store
from llmos_stream.runtime import SYSTEM_CLOCK, Offload
from llmos_stream.wire.control import PROMOTED, dump_setting


async def promoted(broker: Broker, topics: Topics) -> Promotion | None:
    """Return what is promoted now.

    Raises:
        TopicMissing: There is no federation yet.
    """
    async with open_control(broker, topics) as control:
        return control.promoted


async def promote(
    broker: Broker, topics: Topics, registry: RegistrySettings, number: int, offload: Offload
) -> Promotion:
    """Promote a version. Of two operators at once the last one wins.

    Raises:
        ConfigError: The version is neither in the log nor in the registry.
    """
    before = await promoted(broker, topics)
    if before is not None and before.version == number:
        return before
    now = SYSTEM_CLOCK.time_ms()
    after = Promotion(number, (), now) if before is None else before.followed_by(number, now)
    return await _write(broker, topics, registry, after, offload)


async def roll_back(broker: Broker, topics: Topics, registry: RegistrySettings, offload: Offload) -> Promotion:
    """Promote the version that was promoted before.

    Raises:
        NotFound: There was none, or it is gone.
    """
    before = await promoted(broker, topics)
    after = None if before is None else before.rolled_back(SYSTEM_CLOCK.time_ms())
    if after is None:
        reason = "nothing is promoted" if before is None else f"version {before.version} is the first one promoted"
        raise NotFound(f"there is nothing to go back to: {reason}; promote a version: llmos-stream versions promote N")
    return await _write(broker, topics, registry, after, offload)


async def _write(
    broker: Broker, topics: Topics, registry: RegistrySettings, promotion: Promotion, offload: Offload
) -> Promotion:
    """Write a promotion, once the log or the registry has its version."""
    number = promotion.version
    async with version_index(broker, topics.models) as index:
        in_log = await index.pointer(number) is not None
    if not in_log and registry.url is None:
        raise NotFound(f"version {number} is not in the log; name the registry that has it with registry.url")
    if not in_log and not await offload.run(open_store(registry, topics.federation).has, number):
        raise NotFound(f"version {number} is neither in the log nor in the registry; see llmos-stream versions list")
    async with broker.producer() as producer:
        await producer.send(topics.control, dump_setting(promotion), key=PROMOTED)
    return promotion
