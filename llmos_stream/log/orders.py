"""What an operator wants of single clients: a word for each in `<f>.control`, which holds until it is taken back."""

from dataclasses import replace

from llmos_stream.broker import Broker, Topics
from llmos_stream.log.control import open_control
from llmos_stream.runtime import SYSTEM_CLOCK
from llmos_stream.types import ClientOrder
from llmos_stream.wire.control import client_key, dump_order


async def order_of(broker: Broker, topics: Topics, client_id: str) -> ClientOrder:
    """What is wanted of a client now. Raises TopicMissing."""
    async with open_control(broker, topics, sequences_of=client_id) as control:
        return control.orders.get(client_id, ClientOrder())


async def order(broker: Broker, topics: Topics, client_id: str, wanted: ClientOrder) -> None:
    """Say what is wanted of a client from now on."""
    wanted = replace(wanted, time_ms=SYSTEM_CLOCK.time_ms())
    is_any = wanted.forbidden or wanted.settings
    async with broker.producer() as producer:
        await producer.send(topics.control, dump_order(wanted if is_any else None), key=client_key(client_id))
