"""Pausing a federation, and letting it go on: a word in `<f>.control` that holds until the other one is said.

While it is paused clients begin no update, and the aggregator folds none and publishes nothing. Updates that were
under way wait in the log, for as long as it keeps them (`topics.updates_retention_hours`). Everybody stays: readers go
on reading, the leader goes on leading.
"""

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import FederationFinished
from llmos_stream.roles.control import ControlView
from llmos_stream.roles.control_records import PAUSED, dump_paused
from llmos_stream.roles.events import now_ms


async def set_paused(broker: Broker, settings: Settings, paused: bool) -> None:
    """Say so to everybody. Raises TopicMissing, and FederationFinished where nobody is left to hear it."""
    topic = Topics(settings.federation.name).control
    async with broker.reader([topic], start="earliest") as reader:
        control = ControlView(reader)
        await control.catch_up()
    if control.finished is not None:
        raise FederationFinished(f"federation {settings.federation.name} has ended: {control.finished.reason}")
    async with broker.producer() as producer:
        await producer.send(topic, dump_paused(paused, now_ms()), key=PAUSED)
