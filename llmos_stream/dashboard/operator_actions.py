"""An operator's actions from the page: pause, resume, promote."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmos_stream.config import RegistrySettings
from llmos_stream.log.federation import Federation
from llmos_stream.log.pausing import set_paused
from llmos_stream.registry import promote


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


def operator_actions(federation: Callable[[], Federation], registry: RegistrySettings) -> OperatorActions:
    """Make the actions. Each calls `federation`, which raises BrokerUnavailable while the broker has not answered."""

    async def pause_or_resume(paused: bool) -> None:
        here = federation()
        await set_paused(here.broker, here.topics, paused)

    async def promote_one(number: int) -> None:
        here = federation()
        await promote(here.broker, here.topics, registry, number, here.offload)

    return OperatorActions(pause_or_resume, promote_one)
