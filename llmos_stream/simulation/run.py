"""One simulated run: clients that follow the client policy, and an aggregator, under a virtual clock.

Here is what the aggregator does; see `crowd` for who takes part, and `clients` for what a client does. Everything
follows from settings and seed.
"""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from llmos_stream.core import Update
from llmos_stream.core.stopping import make_stop_rule
from llmos_stream.simulation.aggregator import Taken
from llmos_stream.simulation.clients import Clients
from llmos_stream.simulation.crowd import Crowd
from llmos_stream.simulation.experiment import Arm
from llmos_stream.simulation.measuring import Measuring, OnTestData
from llmos_stream.simulation.results import Point, Result
from llmos_stream.simulation.scene import Scene, make_scene
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.types import UpdateHead

Progress = Callable[[int], None]
Observer = Callable[[UpdateHead, Sequence[bytes] | None, float], None]
MakeMeasuring = Callable[[RunSettings, Scene], Measuring]
_TOLD_EVERY = 256


def simulate(
    arm: Arm,
    seed: int,
    progress: Progress | None = None,
    observer: Observer | None = None,
    measuring: MakeMeasuring = OnTestData,
) -> Result:
    """Run one arm with one seed.

    Args:
        arm: What is run.
        seed: Draws the population and all that happens by chance.
        progress: Told now and then how many updates were received.
        observer: Told of every update that the aggregator is given: its head, its payload where it is coded, and when.
        measuring: Makes what measures versions.

    Raises:
        ConfigError: The settings cannot be simulated.
        TaskError: The task does not load, or cannot be measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that results do not depend on how many runs go on beside
    begun = perf_counter()
    try:
        run = Run(arm.settings, seed, progress, observer, measuring)
        run.go()
        return run.result(arm, seed, perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)


class Run:
    """See `simulate`."""

    def __init__(
        self,
        settings: RunSettings,
        seed: int,
        progress: Progress | None = None,
        observer: Observer | None = None,
        measuring: MakeMeasuring = OnTestData,
    ) -> None:
        self._settings = settings
        self._progress, self._observer = progress, observer
        scene = make_scene(settings, seed)
        self._clock, self.tally, self._trainer = scene.clock, scene.tally, scene.trainer
        self.layout, self.aggregator = scene.layout, scene.aggregator
        self._measuring = measuring(settings, scene)
        self._stop = make_stop_rule(settings.stop)
        self._clients = Clients(settings, scene, self._arrived, self._left)
        self._crowd = Crowd(settings.population, scene, self._clients.begin)
        self._deadline: float | None = None
        self.ended: str | None = None

    def go(self) -> None:
        """Run to the end."""
        self._evaluate(0)
        self._crowd.begin()
        limit = min(self._settings.simulation.seconds or math.inf, self._settings.stop.max_seconds or math.inf)
        while self.ended is None:
            due = self._clock.next_at
            if due == math.inf:
                self.ended = "no client is there any more"
            elif due > limit:
                self._clock.now, self.ended = limit, "time"
            else:
                self._clock.step()

    def _left(self, client: int) -> None:
        self._crowd.left(client)

    def _arrived(self, update: Update | None, payload: Sequence[bytes] | None) -> None:
        """The aggregator reads an update."""
        if update is not None:
            if self._observer is not None:
                self._observer(update.head, payload, self._clock.now)
            self._settle(self.aggregator.take(update, self._clock.now))
        received = self.tally.received
        if self._progress is not None and received % _TOLD_EVERY == 0:
            self._progress(received)
        if self.ended is None and received >= self._settings.simulation.updates:
            self.ended = "updates"

    def _settle(self, taken: Taken) -> None:
        self.tally.taken(taken)
        deadline = self.aggregator.next_deadline()
        if deadline is not None and deadline != self._deadline:
            self._clock.at(deadline, self._tick)
        self._deadline = deadline
        if taken.version is not None:
            self._published(taken.version)

    def _tick(self, _: object) -> None:
        self._settle(self.aggregator.tick(self._clock.now))

    def _published(self, version: int) -> None:
        if version % self._settings.evaluator.every == 0:
            self._evaluate(version)
        if (stop := self._stop.observe_version(version)) is not None:
            self.ended = stop.reason
        self._clients.tell(version)

    def _evaluate(self, version: int) -> None:
        metrics = self._measuring.measure(version, self.aggregator.weights)
        tally = self.tally
        tally.evaluated(Point(self._clock.now, version, tally.received, tally.bytes_up, tally.bytes_down, metrics))
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
            seconds=self._clock.now,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            clients=self._settings.population.clients,
            clients_seen=int(seen.sum()),
            clients_never_folded=int((seen & (tally.folded_by <= 0)).sum()),
            staleness=tally.staleness(),
            final=tally.final,
            best=tally.best,
            sites=self._measuring.at_sites(aggregator.weights),
            digest=aggregator.digest(),
            ended=self.ended or "",
            training=self._trainer.how,
            wall_seconds=wall_seconds,
        )
