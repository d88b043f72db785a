"""What the clients of a simulated run do: what the client policy says, in the time that the population says.

The result of a training is computed when it is wanted: see `planned`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmos_stream.core import Update
from llmos_stream.core.client_policy import (
    Heard,
    Leave,
    Look,
    PolicyEvent,
    PolicyState,
    Resumed,
    Send,
    SendUnsent,
    Train,
    TrainingDone,
    UnsentSettled,
    UpdateKept,
    UpdateRefused,
    UpdateSent,
    Wait,
    WaitReason,
    is_too_stale,
    join,
    next_action,
    observe,
    train_seconds,
)
from llmos_stream.core.participation import why_unwanted
from llmos_stream.errors import Reason
from llmos_stream.simulation.job import Job
from llmos_stream.simulation.planned import Planned
from llmos_stream.simulation.scene import Scene
from llmos_stream.simulation.sending import Sending
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.types import ParticipationRules

Payload = Sequence[bytes]


@dataclass(slots=True, eq=False)
class _Client:
    """A client that takes part now."""

    number: int
    policy: PolicyState
    job: Job | None = None
    seconds: float = 0.0
    share: float = 1.0
    drops: bool = False
    held: int | None = None
    in_flight: int = 0
    """How many of its updates are on their way: one at most, but for those that a drop-out leaves."""
    waits: int = 0
    """Counts what it has waited for, so that it is not woken for what is past."""

    @property
    def id(self) -> str:
        return f"c{self.number}"


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """An update on its way to the log."""

    client: _Client
    job: Job
    payload: Payload | None
    sequence: int


class Clients:
    """All that are at work.

    `arrived` is called with an update that the log holds, and its payload where it is coded; or with None, where the
    training came to nothing. `left` is called with the number of a client that has left.
    """

    def __init__(
        self,
        settings: RunSettings,
        scene: Scene,
        arrived: Callable[[Update | None, Payload | None], None],
        left: Callable[[int], None],
    ) -> None:
        self._clock, self._chance, self._population = scene.clock, scene.chance, scene.population
        self._trainer, self._aggregator, self._tally = scene.trainer, scene.aggregator, scene.tally
        self._arrived_at_log, self._left = arrived, left
        self._sending = Sending(settings, scene.layout)
        self._planned = Planned(scene.trainer, settings.simulation.at_once)
        self._oldest = self._aggregator.rule.admitted.maximum
        self._dropout = settings.availability.dropout
        own = settings.participation
        self._gate = ParticipationRules(tuple(own.clients.split(",")), own.at_once, own.min_examples)
        self._is_open = self._gate.clients == ("*",)
        self._rules = settings.client
        self._leaves = settings.population.concurrency is not None
        if self._leaves and settings.client.max_updates is None:
            self._rules = settings.client.model_copy(update={"max_updates": 1})
        self._waiting: dict[_Client, None] = {}
        self._trainings = np.zeros(settings.population.clients, np.int32)
        self._sequences = np.zeros(settings.population.clients, np.int32)
        self._heard = Heard(newest=0, pace_seconds=settings.client.pace_seconds)

    def begin(self, number: int) -> bool:
        """A client begins to take part; whether it trains now."""
        trained = int(self._trainings[number])
        client = _Client(number, join(self._rules, self._clock.now))
        self._act(client, self._heard_by(client))
        return int(self._trainings[number]) > trained

    def tell(self, version: int) -> None:
        """There is a new version: those who wait for it hear of it."""
        self._heard = replace(self._heard, newest=version, steps_per_second=self._aggregator.fastest)
        for client in list(self._waiting):
            self._act(client, self._heard_by(client))

    def _heard_by(self, client: _Client) -> Heard:
        if self._is_open:
            return self._heard
        return replace(self._heard, unwanted=why_unwanted(client.id, self._gate, None))

    def _act(self, client: _Client, event: PolicyEvent) -> None:
        """Tell a client what has happened, and do what it does then."""
        client.waits += 1
        self._waiting.pop(client, None)
        while True:
            client.policy, action = next_action(client.policy, event, self._clock.now)
            match action:
                case Train(version):
                    self._train(client, version)
                    return
                case Look():
                    event = self._heard_by(client)
                case Send():
                    if not self._send(client):
                        event = UpdateRefused()
                        continue
                    if not (self._rules.overlap and client.in_flight):
                        return
                    event = UpdateKept()
                case SendUnsent():
                    event = UnsentSettled(sent=False)
                case Leave():
                    self._left(client.number)
                    return
                case Wait(until, reason):
                    if client.policy.heard.newest != self._heard.newest:
                        event = self._heard_by(client)
                        continue
                    self._wait(client, until, reason)
                    return

    def _wait(self, client: _Client, until: float, reason: WaitReason) -> None:
        if reason is WaitReason.VERSION:
            self._waiting[client] = None
        if until < math.inf:
            self._clock.at(until, self._wake, (client, client.waits))

    def _wake(self, what: tuple[_Client, int]) -> None:
        client, waits = what
        if client.waits == waits:
            self._act(client, self._heard_by(client))

    def _resume(self, client: _Client) -> None:
        client.policy = observe(client.policy, self._heard_by(client), self._clock.now)
        self._act(client, Resumed())

    def _train(self, client: _Client, version: int) -> None:
        number, now = client.number, self._clock.now
        there = self._population.there_from(number, now)
        if there > now:
            if there < math.inf:
                self._clock.at(there, self._resume, client)
            else:
                self._left(number)
            return
        aggregator = self._aggregator
        size = aggregator.download_size(client.held) if client.held != version else 0
        client.held = version
        self._tally.bytes_down += size
        job = Job(number, int(self._trainings[number]), version, aggregator.weights, fastest=aggregator.fastest)
        self._trainings[number] += 1
        job.examples, client.share = self._trainer.size(job)
        client.job, client.seconds = job, self._population.training_seconds(number, job.examples, self._chance.next())
        self._trainer.timed(job, train_seconds(self._rules, client.seconds, client.share))
        job.due = now + (self._population.download_seconds(number, size) if size else 0.0) + client.seconds
        client.drops = self._dropout > 0 and self._chance.next() < self._dropout
        order = self._clock.at(job.due, self._trained, client)
        if not client.drops:
            self._planned.add(job, order)

    def _trained(self, client: _Client) -> None:
        if client.job is None:
            raise RuntimeError("a client ended a training that it had not begun")
        if not client.drops:
            self._act(client, TrainingDone(client.job.version, client.seconds, client.share))
        elif self._leaves:
            self._left(client.number)
        else:
            self._resume(client)

    def _send(self, client: _Client) -> bool:
        """Send the update of a client's job. False where it cannot count any more."""
        job = client.job
        if job is None:
            raise RuntimeError("a client sent an update that it had not trained")
        if is_too_stale(job.version, self._aggregator.version, self._oldest):
            job.failed = str(Reason.TOO_STALE)
            self._tally.refuse(client.number, job.failed)
            return False
        number = client.number
        sequence = int(self._sequences[number])
        payload = None
        if self._sending.coded or self._tally.received == 0:
            self._planned.compute(job)
        if self._sending.coded and job.failed is None:
            payload = self._sending.encoded(job, client.id, sequence)
        if job.failed is not None:
            self._tally.refuse(number, "failed")
            return False
        self._sequences[number] += 1
        size = self._sending.size() if payload is None else sum(map(len, payload))
        self._tally.bytes_up += size
        client.job = None
        flight = _Flight(client, job, payload, sequence)
        seconds = self._population.upload_seconds(number, size)
        if seconds > 0:
            client.in_flight += 1
            self._clock.at(self._clock.now + seconds, self._landed, flight)
        else:
            self._arrived(flight)
        return True

    def _landed(self, flight: _Flight) -> None:
        flight.client.in_flight -= 1
        self._arrived(flight)

    def _arrived(self, flight: _Flight) -> None:
        """The log has acknowledged an update; the aggregator reads it."""
        client, job, payload, sequence = flight.client, flight.job, flight.payload, flight.sequence
        self._act(client, UpdateSent())
        self._planned.compute(job)
        self._tally.received += 1
        if job.failed is not None:
            self._tally.refuse(client.number, "failed")
            self._arrived_at_log(None, None)
        else:
            self._tally.sent_by[client.number] += 1
            update = self._sending.update(job, client.id, sequence, self._tally.received, payload)
            self._arrived_at_log(update, payload)
