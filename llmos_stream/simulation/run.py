"""One simulated run: clients that follow the client policy, and an aggregator, under a virtual clock.

What happens next is what is due next. A training takes the time that the population says; its result is computed when
it is wanted, together with those of other clients that are at work. Everything follows from settings and seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from time import perf_counter
from typing import Any

import numpy as np
import torch

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
from llmos_stream.core.stopping import make_stop_rule
from llmos_stream.errors import ConfigError, Reason
from llmos_stream.simulation.aggregator import Aggregator, Taken
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.experiment import Arm
from llmos_stream.simulation.job import Job
from llmos_stream.simulation.measuring import Measuring
from llmos_stream.simulation.population import Population
from llmos_stream.simulation.results import Point, Result, Tally
from llmos_stream.simulation.sending import Sending
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.trainers import make_trainer
from llmos_stream.training import load_task
from llmos_stream.training.seeds import derive_seed
from llmos_stream.types import ParticipationRules, UpdateHead

Progress = Callable[[int], None]
Observer = Callable[[UpdateHead, Sequence[bytes] | None, float], None]
_TOLD_EVERY = 256
_TRIES = 64
_MOST_IDLE = 1000


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
    payload: Sequence[bytes] | None = None
    sequence: int = 0
    waits: int = 0
    """Counts what it has waited for, so that it is not woken for what is past."""

    @property
    def id(self) -> str:
        return f"c{self.number}"


def simulate(arm: Arm, seed: int, progress: Progress | None = None, observer: Observer | None = None) -> Result:
    """Run one arm with one seed.

    Args:
        arm: What is run.
        seed: Draws the population and all that happens by chance.
        progress: Told now and then how many updates were received.
        observer: Told of every update that the aggregator is given: its head, its payload where it is coded, and when.

    Raises:
        ConfigError: The settings cannot be simulated.
        TaskError: The task does not load, or cannot be measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that results do not depend on how many runs go on beside
    begun = perf_counter()
    try:
        run = Run(arm.settings, seed, progress, observer)
        run.go()
        return run.result(arm, seed, perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)


class Run:
    """See `simulate`."""

    def __init__(
        self, settings: RunSettings, seed: int, progress: Progress | None = None, observer: Observer | None = None
    ) -> None:
        self._settings = settings
        self._progress, self._observer = progress, observer
        count = settings.population.clients
        self._chance = np.random.default_rng(derive_seed(seed, "simulation.events"))
        self._chances: list[float] = []
        task = load_task(settings.task, settings.client)
        tensors = None if settings.data.split == "task" else task.tensors()
        if tensors is None and settings.data.split != "task":
            raise ConfigError(
                f"data.split: task {settings.task.entry} gives no tensors to split (Task.tensors); say task, "
                "for the sites that it has"
            )
        data = None if tensors is None else SplitData(tensors, settings.data, settings.client, count, seed)
        self._population = Population(settings, seed)
        self.trainer = make_trainer(task, settings, data)
        self._at_once = settings.simulation.at_once if self.trainer.batches else 1
        self.layout, weights = self.trainer.begin()
        self.aggregator = Aggregator(settings, self.layout, weights)
        self._sending = Sending(settings, self.layout)
        self._measuring = Measuring(task, settings, data)
        self._stop = make_stop_rule(settings.stop)
        self._oldest = self.aggregator.rule.admitted.maximum
        own = settings.participation
        self._gate = ParticipationRules(tuple(own.clients.split(",")), own.at_once, own.min_examples)
        self._is_open = self._gate.clients == ("*",)
        self._rules = settings.client
        if settings.population.concurrency is not None and settings.client.max_updates is None:
            self._rules = settings.client.model_copy(update={"max_updates": 1})
        self.tally = Tally(settings.simulation, count)
        self.now = 0.0
        self.ended: str | None = None
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._ordered = 0
        self._pending: list[tuple[float, int, Job]] = []
        self._waiting: dict[_Client, None] = {}
        self._busy = bytearray(count)
        self._working = 0
        self._trainings = np.zeros(count, np.int32)
        self._sequences = np.zeros(count, np.int32)
        self._deadline: float | None = None
        self._heard = Heard(newest=0, pace_seconds=settings.client.pace_seconds)

    # The clock

    def go(self) -> None:
        """Run to the end."""
        self._evaluate(0)
        if self._settings.population.concurrency is None:
            for number in range(self._settings.population.clients):
                self._join(number)
        else:
            self._recruit(None)
        limit = min(self._settings.simulation.seconds or math.inf, self._settings.stop.max_seconds or math.inf)
        while self.ended is None:
            if not self._events:
                self.ended = "no client is there any more"
            elif self._events[0][0] > limit:
                self.now, self.ended = limit, "time"
            else:
                self.now, _, act, what = heappop(self._events)
                act(what)

    def _at(self, when: float, act: Callable[[Any], None], what: Any) -> None:
        self._ordered += 1
        heappush(self._events, (when, self._ordered, act, what))

    def _random(self) -> float:
        if not self._chances:
            self._chances = self._chance.random(4096).tolist()
        return self._chances.pop()

    # Who takes part

    def _join(self, number: int) -> None:
        there = self._population.there_from(number, self.now)
        if there <= self.now:
            self._begin(number)
        elif there < math.inf:
            self._at(there, self._begin, number)

    def _begin(self, number: int) -> None:
        self._busy[number] = 1
        self._working += 1
        client = _Client(number, join(self._rules, self.now))
        self._act(client, self._heard_by(client))

    def _recruit(self, _: object) -> None:
        """Fill the places of those who have left, with clients chosen by chance."""
        wanted, idle = self._settings.population.concurrency or 0, 0
        while self._working < wanted and self.ended is None:
            chosen, later = self._choose()
            if chosen is None:
                if later < math.inf:
                    self._at(max(later, self.now), self._recruit, None)
                return
            trained = int(self._trainings[chosen])
            self._begin(chosen)
            idle = 0 if self._trainings[chosen] > trained else idle + 1
            if idle > _MOST_IDLE:
                raise ConfigError("participation: no client is wanted that there is")

    def _choose(self) -> tuple[int | None, float]:
        """A client that is there and does not work; or None, and when it is worth to look again."""
        count, later = self._settings.population.clients, math.inf
        for _ in range(_TRIES):
            number = int(self._random() * count)
            if not self._busy[number]:
                there = self._population.there_from(number, self.now)
                if there <= self.now:
                    return number, self.now
                later = min(later, there)
        if count <= _TRIES**2:
            free = [number for number in range(count) if not self._busy[number]]
            times = [self._population.there_from(number, self.now) for number in free]
            here = [number for number, there in zip(free, times, strict=True) if there <= self.now]
            if here:
                return here[int(self._random() * len(here))], self.now
            later = min(times, default=math.inf)
        return None, later

    def _leave(self, client: _Client) -> None:
        self._busy[client.number] = 0
        self._working -= 1
        if self._settings.population.concurrency is not None:
            self._at(self.now, self._recruit, None)  # once what happens now has happened

    # What a client does

    def _heard_by(self, client: _Client) -> Heard:
        if self._is_open:
            return self._heard
        return replace(self._heard, unwanted=why_unwanted(client.id, self._gate, None))

    def _act(self, client: _Client, event: PolicyEvent) -> None:
        """Tell a client what has happened, and do what it does then."""
        client.waits += 1
        self._waiting.pop(client, None)
        while True:
            client.policy, action = next_action(client.policy, event, self.now)
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
                    return
                case SendUnsent():
                    event = UnsentSettled(sent=False)
                case Leave():
                    self._leave(client)
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
            self._at(until, self._wake, (client, client.waits))

    def _wake(self, what: tuple[_Client, int]) -> None:
        client, waits = what
        if client.waits == waits:
            self._act(client, self._heard_by(client))

    def _resume(self, client: _Client) -> None:
        client.policy = observe(client.policy, self._heard_by(client), self.now)
        self._act(client, Resumed())

    def _train(self, client: _Client, version: int) -> None:
        number = client.number
        there = self._population.there_from(number, self.now)
        if there > self.now:
            if there < math.inf:
                self._at(there, self._resume, client)
            else:
                self._leave(client)
            return
        size = self.aggregator.download_size(client.held) if client.held != version else 0
        client.held = version
        self.tally.bytes_down += size
        job = Job(
            number, int(self._trainings[number]), version, self.aggregator.weights, fastest=self.aggregator.fastest
        )
        self._trainings[number] += 1
        examples, client.share = self.trainer.size(job)
        client.job, client.seconds = job, self._population.training_seconds(number, examples, self._random())
        self.trainer.timed(job, train_seconds(self._rules, client.seconds, client.share))
        job.due = self.now + (self._population.download_seconds(number, size) if size else 0.0) + client.seconds
        dropout = self._settings.availability.dropout
        client.drops = dropout > 0 and self._random() < dropout
        self._at(job.due, self._trained, client)
        if not client.drops:
            heappush(self._pending, (job.due, self._ordered, job))

    def _trained(self, client: _Client) -> None:
        if client.job is None:
            raise RuntimeError("a client ended a training that it had not begun")
        if not client.drops:
            self._act(client, TrainingDone(client.job.version, client.seconds, client.share))
        elif self._settings.population.concurrency is None:
            self._resume(client)
        else:
            self._leave(client)

    def _compute(self, job: Job) -> None:
        """Have a job trained, and with it those that are wanted soonest."""
        if job.is_done:
            return
        jobs = [job]
        while self._pending and len(jobs) < self._at_once:
            other = heappop(self._pending)[2]
            if other is not job and not other.is_done:
                jobs.append(other)
        self.trainer.train(jobs)

    def _send(self, client: _Client) -> bool:
        """Send the update of a client's job. False where it cannot count any more."""
        job = client.job
        if job is None:
            raise RuntimeError("a client sent an update that it had not trained")
        if is_too_stale(job.version, self.aggregator.version, self._oldest):
            job.failed = str(Reason.TOO_STALE)
            self._refused(client, job.failed)
            return False
        number = client.number
        client.sequence = int(self._sequences[number])
        client.payload = None
        if self._sending.coded or self.tally.received == 0:
            self._compute(job)
        if self._sending.coded and job.failed is None:
            client.payload = self._sending.encoded(job, client.id, client.sequence)
        if job.failed is not None:
            self._refused(client, "failed")
            return False
        self._sequences[number] += 1
        size = self._sending.size() if client.payload is None else sum(map(len, client.payload))
        self.tally.bytes_up += size
        seconds = self._population.upload_seconds(number, size)
        if seconds > 0:
            self._at(self.now + seconds, self._arrived, client)
        else:
            self._arrived(client)
        return True

    def _arrived(self, client: _Client) -> None:
        """The log has acknowledged an update; the aggregator reads it."""
        job, payload, sequence = client.job, client.payload, client.sequence
        client.job = None
        if job is None:
            raise RuntimeError("an update arrived that was not sent")
        self._act(client, UpdateSent())
        self._compute(job)
        self.tally.received += 1
        self.tally.sent_by[client.number] += 1
        if job.failed is not None:
            self.tally.refused["failed"] += 1
        else:
            update = self._sending.update(job, client.id, sequence, self.tally.received, payload)
            if self._observer is not None:
                self._observer(update.head, payload, self.now)
            self._settle(self.aggregator.take(update, self.now))
        if self._progress is not None and self.tally.received % _TOLD_EVERY == 0:
            self._progress(self.tally.received)
        if self.ended is None and self.tally.received >= self._settings.simulation.updates:
            self.ended = "updates"

    def _refused(self, client: _Client, why: str) -> None:
        self.tally.sent_by[client.number] += 1
        self.tally.refused[why] += 1

    # What the aggregator does

    def _settle(self, taken: Taken) -> None:
        if taken.refused is not None:
            self.tally.refused[str(taken.refused)] += 1  # a plain one, as JSON wants it
        if (item := taken.folded) is not None:
            self.tally.folded += 1
            self.tally.stale(item.staleness)
            self.tally.folded_by[int(item.client_id[1:])] += 1
        for client_id in taken.lost:
            self.tally.folded -= 1
            self.tally.folded_by[int(client_id[1:])] -= 1
            self.tally.refused["unsafe_version"] += 1
        deadline = self.aggregator.next_deadline()
        if deadline is not None and deadline != self._deadline:
            self._at(deadline, self._tick, None)
        self._deadline = deadline
        if taken.version is not None:
            self._published(taken.version)

    def _tick(self, _: object) -> None:
        self._settle(self.aggregator.tick(self.now))

    def _published(self, version: int) -> None:
        if version % self._settings.evaluator.every == 0:
            self._evaluate(version)
        if (stop := self._stop.observe_version(version)) is not None:
            self.ended = stop.reason
        self._heard = replace(self._heard, newest=version, steps_per_second=self.aggregator.fastest)
        for client in list(self._waiting):
            self._act(client, self._heard_by(client))

    def _evaluate(self, version: int) -> None:
        metrics = self._measuring.measure(version, self.layout, self.aggregator.weights)
        tally = self.tally
        tally.evaluated(Point(self.now, version, tally.received, tally.bytes_up, tally.bytes_down, metrics))
        if (stop := self._stop.observe_evaluation(version, metrics)) is not None:
            self.ended = stop.reason

    def result(self, arm: Arm, seed: int, wall_seconds: float) -> Result:
        """What it has come to."""
        tally, aggregator = self.tally, self.aggregator
        if tally.points[-1].version != aggregator.version:
            self._evaluate(aggregator.version)
        seen = tally.sent_by > 0
        return Result(
            arm=arm.name,
            seed=seed,
            fingerprint=arm.fingerprint(seed),
            points=tally.points,
            updates=tally.received,
            folded=tally.folded,
            refused=dict(sorted(tally.refused.items())),
            versions=aggregator.version,
            seconds=self.now,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            clients=self._settings.population.clients,
            clients_seen=int(seen.sum()),
            clients_never_folded=int((seen & (tally.folded_by <= 0)).sum()),
            staleness=tally.staleness(),
            final=tally.final,
            best=tally.best,
            sites=self._measuring.at_sites(self.layout, aggregator.weights),
            digest=aggregator.digest(),
            ended=self.ended or "",
            training=self.trainer.how,
            wall_seconds=wall_seconds,
        )
