"""A scenario, each arm with each seed: pooled, every site alone, synchronous, asynchronous, personalised."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.scenarios.catalogue import Scenario
from llmos_stream.scenarios.measuring import Course, Measuring, Point
from llmos_stream.scenarios.site import Place, Site, local_model
from llmos_stream.scenarios.site_task import Split, joined
from llmos_stream.scenarios.virtual import run_asynchronous, run_synchronous
from llmos_stream.training import load_task
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.tensor_task import Batches

POOLED, ALONE, SYNCHRONOUS, ASYNCHRONOUS, PERSONAL = "pooled", "alone", "synchronous", "asynchronous", "personalised"


_MEASURED = 100
"""How many versions of a run are measured at most: the first, and each that comes this part of the run later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm came to with one seed.

    at_home: the metrics over all test rows, each site's measured with the model that the site has. everywhere: those of
    one model over all test rows; where each site has its own, the mean over the sites. reached: when it was near
    pooled training, in seconds of the scenario's clock. points: all versions.
    """

    at_home: Mapping[str, float]
    everywhere: Mapping[str, float]
    reached: float | None = None
    updates: int = 0
    points: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """What all arms came to: by arm, one outcome a seed."""

    scenario: Scenario
    settings: Settings
    seeds: Sequence[int]
    outcomes: Mapping[str, Sequence[Outcome]]


def run_study(
    scenario: Scenario, settings: Settings, seeds: Sequence[int], progress: Callable[[str], object] = print
) -> Study:
    """Run every arm with every seed; a seed is that of the split, the weights and the batches.

    Raises:
        ConfigError: The settings ask for what a scenario's clock does not know.
    """
    if settings.client.local_steps is not None:
        raise ConfigError("client.local_steps: in a scenario every update of a site takes the same time; leave it out")
    outcomes: dict[str, list[Outcome]] = {}
    for seed in seeds:
        for arm, outcome in _Run(scenario, settings.changed(task={"seed": seed, "entry": scenario.entry})).outcomes():
            outcomes.setdefault(arm, []).append(outcome)
            progress(f"seed {seed}: {arm}")
    return Study(scenario, settings, tuple(seeds), outcomes)


class _Run:
    """All arms with one seed."""

    def __init__(self, scenario: Scenario, settings: Settings) -> None:
        self._scenario, self._settings = scenario, settings
        self._task = load_task(settings.task, settings.client)
        own = scenario.task(settings.task, settings.client)
        self._splits: Mapping[str, Split] = {site: own.split(site) for site in own.sites}
        self._places = [
            Place(site, scenario.seconds_of(site, split), split.validation, split.test)
            for site, split in self._splits.items()
        ]
        self._measuring = Measuring(self._task, self._places)
        self._near = float("nan")

    def outcomes(self) -> Sequence[tuple[str, Outcome]]:
        pooled = self._pooled()
        self._near = pooled.at_home[self._scenario.metric] - self._scenario.near
        found = [
            (POOLED, pooled),
            (ALONE, self._alone()),
            (SYNCHRONOUS, self._federated(self._settings, run_synchronous)),
            (ASYNCHRONOUS, self._federated(self._settings, self._asynchronous)),
        ]
        if self._scenario.personal is not None and self._settings.task.share == "all":
            own = self._settings.changed(task={"share": self._scenario.personal})
            found.append((PERSONAL, self._federated(own, self._asynchronous)))
        return found

    def _pooled(self) -> Outcome:
        """One model, trained on the rows of all sites in one place."""
        rows = joined([split.train for split in self._splits.values()])
        seed = derive_seed(self._settings.task.seed, "pooled batches")
        batches = Batches(*rows, self._settings.client.batch_size, seed)
        trainer = local_model(self._task, self._settings).trainer
        course = Course(self._measuring)
        for epoch in range(self._scenario.pooled_epochs):
            trainer.run_epoch(batches)
            course.note(float(epoch + 1), [trainer.model])
        return Outcome(course.at_home, course.everywhere)

    def _alone(self) -> Outcome:
        """A model for each site, trained on its rows alone; each site takes its best by its own validation rows."""
        models = [self._alone_at(number, place) for number, place in enumerate(self._places)]
        return Outcome(self._measuring.at_home(models), self._measuring.everywhere(models))

    def _alone_at(self, number: int, place: Place) -> nn.Module:
        site = Site(self._settings, place)
        best, least = copy.deepcopy(site.model), float("inf")
        for _ in range(self._scenario.pooled_epochs):
            site.train_on()
            loss = self._measuring.loss_at(site.model, number)
            if loss < least:
                best, least = copy.deepcopy(site.model), loss
        return best

    def _federated(self, settings: Settings, run: Callable[..., int]) -> Outcome:
        sites = [Site(settings, place) for place in self._places]
        shown = Site(settings, self._places[0]).local
        course = Course(self._measuring)
        between, due = self._scenario.seconds / _MEASURED, 0.0

        def observe(seconds: float, _version: int, weights: Tensor) -> None:
            nonlocal due
            if seconds < due:
                return
            due = seconds + between
            if settings.task.share == "all":
                shown.load(weights)
                course.note(seconds, [shown.model])
                return
            for site in sites:  # what a site keeps is in its model
                site.local.load(weights)
            course.note(seconds, [site.model for site in sites])

        updates = run(sites, self._scenario.seconds, observe)
        reached = course.reaches(self._scenario.metric, self._near)
        return Outcome(course.at_home, course.everywhere, reached, updates, course.points)

    def _asynchronous(
        self, sites: Sequence[Site], seconds: float, observe: Callable[[float, int, Tensor], None]
    ) -> int:
        return run_asynchronous(sites, self._settings, seconds, observe)
