"""Whether anybody leads a federation now."""

from llmos_stream.broker import Broker, Topics
from llmos_stream.errors import BrokerError
from llmos_stream.log.control import Leader, open_control
from llmos_stream.runtime import SYSTEM_CLOCK, Clock


async def living_leader(broker: Broker, topics: Topics, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Leader | None:
    """The aggregator that leads, once it is heard. None where none is within `seconds`, or the last one left in order.

    One that died has not left: only a beat shows that it lives.
    """
    try:
        async with open_control(broker, topics, clock=clock) as control:
            heard, until = control.beats, clock.monotonic() + seconds
            while (leader := control.leader) is not None and not leader.left:
                if control.beats != heard:
                    return leader
                if (left := until - clock.monotonic()) <= 0:
                    return None
                await control.poll(left)
    except BrokerError:
        pass  # there is no such topic, or this user may not read it
    return None
