"""A small federation whose log the tests read: two versions, two refusals, a message in several chunks."""

from dataclasses import dataclass

from llmos_stream.broker import connect
from tests.conftest import KafkaNode
from tests.roles.aids import aggregator, delta_of, settings_for, update

STRANGE = "[/b]\x1b[2J"
"""What anybody may call himself in a record's key."""
WEIGHT = (30 * 1.0 + 10 * 2.0) / 40
"""Every weight of version 1: the FedAvg of two deltas, from zeros."""


@dataclass(frozen=True)
class Logged:
    """Its name, and offsets in its updates topic."""

    federation: str
    first: int
    chunked: int
    rubbish: int


async def write_log(kafka: KafkaNode, federation: str) -> Logged:
    settings = settings_for(federation, aggregation={"buffer_size": 2}, versions={"full_every": 2})
    async with connect(kafka.settings()) as broker, aggregator(broker, settings) as running:
        first = await running.send(update(delta_of(1.0), sequence=5, num_examples=30))
        await running.send(update(delta_of(2.0), client_id="b"), "b")
        await running.version(1)
        chunked = await running.send(update(delta_of(1.0), 180, client_id="c", metrics={"loss": 0.5}), "c")
        rubbish = await running.send([b"\x00 what is this"], STRANGE)
        await running.send(update(delta_of(float("nan")), client_id="d"), "d")
        await running.quarantined(2)
    return Logged(federation, first, chunked, rubbish)
