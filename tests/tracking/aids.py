"""A run whose log is tracked: clients that say what they measure, refusals, evaluations, and an end."""

from collections.abc import Iterable, Mapping, Sequence

from llmos_stream.broker import Broker
from llmos_stream.log.events import emit
from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.runtime import Offload
from llmos_stream.testing import RunningFederation
from llmos_stream.tracking.follow import Tracking
from llmos_stream.tracking.sink import Run, Sink
from llmos_stream.types import EventKind, Role
from tests.federation import federation_of
from tests.roles.aids import aggregator, delta_of, settings_for, update

VERSIONS = 5


async def write_run(broker: Broker, federation: str, versions: int = VERSIONS, *, ends: bool = True) -> None:
    """Versions of one update each, every one of which is measured."""
    settings = settings_for(federation, stop={"max_versions": versions} if ends else {})
    async with aggregator(broker, settings) as running:
        await running.version(0)
        await take_steps(running, range(versions))


async def take_steps(running: RunningFederation, bases: Iterable[int]) -> None:
    """Train on each of these versions, measure what comes of it, and have one more update refused."""
    federation, topics = running.federation, running.topics
    async with running.broker.producer() as producer:
        for base in bases:
            client = f"client-{base % 2}"
            sent = federation.event(
                EventKind.UPDATE_SENT,
                Role.CLIENT,
                client_id=client,
                sequence=base,
                base_version=base,
                num_examples=10 + base,
                sent_bytes=200,
                raw_bytes=220,
                train_seconds=0.5,
                metrics={"loss": 1.0 / (1 + base), "norm": 2.0},
            )
            await emit(producer, topics.events, sent)
            await running.publish(delta_of(0.1), client, sequence=base, base_version=base, num_examples=10 + base)
            version = await running.version(base + 1)
            found = federation.event(
                EventKind.EVALUATION,
                Role.EVALUATOR,
                version=version.head.number,
                metrics={"loss": 0.9 - 0.1 * base, "accuracy": 0.1 * base, "F1 (macro)": 0.5},
                num_examples=100,
            )
            await emit(producer, topics.evaluations, found)
            if base == 1:
                await running.send(update(delta_of(float("nan")), client_id=client, sequence=77), client)
                await running.quarantined(1)


async def track(broker: Broker, federation: str, *sinks: Sink, clients: int = 50) -> Tracking:
    """Track what the log holds now."""
    async with Offload(1) as offload:
        tracking = Tracking(federation_of(broker, settings_for(federation), offload), sinks, clients)
        try:
            await tracking.once()
        finally:
            await tracking.close()
    return tracking


class Kept:
    """A tracker in memory."""

    target = "memory:"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.settings: dict[str, str] = {}
        self.end: Finish | None = None
        self.run: Run | None = None

    def open(self, run: Run) -> list[tuple[str, int]]:
        self.run = run
        return [(point.name, point.step) for point in self.points]

    def write(self, points: Sequence[Point]) -> None:
        self.points += points

    def describe(self, settings: Mapping[str, str]) -> None:
        self.settings = {**self.settings, **settings}

    def finish(self, end: Finish) -> None:
        self.end = end

    def close(self) -> None:
        pass

    def series(self, name: str) -> dict[int, float]:
        """The values of a series, by version."""
        return {point.step: point.value for point in self.points if point.name == name}
