"""What an operator may do from the page: pause, resume, promote."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.log.pausing import set_paused
from llmos_stream.registry import promote
from llmos_stream.runtime import Offload


@dataclass(frozen=True, slots=True)
class Operator:
    """The acts, each done once it is in the log.

    Both raise TopicMissing where there is no federation yet and BrokerUnavailable where nobody answers; `set_paused`
    raises FederationFinished once the run is over, and `promote` ConfigError for a version that is nowhere.
    """

    set_paused: Callable[[bool], Awaitable[object]]
    promote: Callable[[int], Awaitable[object]]


def operator(broker: Callable[[], Broker], settings: Settings, offload: Offload) -> Operator:
    """`broker` is asked for the broker at each act; it raises BrokerUnavailable while there is none."""

    async def pause_or_resume(paused: bool) -> None:
        await set_paused(broker(), settings, paused)

    async def promote_one(number: int) -> None:
        await promote(broker(), settings, number, offload)

    return Operator(pause_or_resume, promote_one)
