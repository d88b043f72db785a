"""An operator's actions from the page: pause, resume, promote."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.pausing import set_paused
from llmos_stream.registry import promote
from llmos_stream.runtime import Offload


@dataclass(frozen=True, slots=True)
class OperatorActions:
    """The actions. Each returns when its record is in the log.

    Raises:
        TopicMissing: There is no federation yet.
        BrokerUnavailable: The broker does not answer.
        FederationFinished: By `set_paused`, when the run is over.
        ConfigError: By `promote`, for a version that does not exist.
    """

    set_paused: Callable[[bool], Awaitable[object]]
    promote: Callable[[int], Awaitable[object]]


def operator_actions(broker: Callable[[], Broker], settings: Settings, offload: Offload) -> OperatorActions:
    """Make the actions. Each calls `broker`, which raises BrokerUnavailable while there is none."""
    topics = Topics(settings.federation.name)

    async def pause_or_resume(paused: bool) -> None:
        await set_paused(broker(), settings, paused)

    async def promote_one(number: int) -> None:
        await promote(broker(), topics, settings.registry, number, offload)

    return OperatorActions(pause_or_resume, promote_one)
