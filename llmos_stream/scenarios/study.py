"""A scenario, each arm with each seed: pooled, every site alone, synchronous, asynchronous, personalised."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from llmos_stream.config import ServerOptimizerSettings, Settings, StalenessSettings
from llmos_stream.config.aggregation import fedavg_of
from llmos_stream.errors import ConfigError
from llmos_stream.scenarios.catalogue import Scenario
from llmos_stream.scenarios.measuring import AtSites, Best, HeldBack, Rows
from llmos_stream.scenarios.site_task import Split, joined
from llmos_stream.simulation import simulate
from llmos_stream.simulation.experiment import Arm
from llmos_stream.simulation.results import Point
from llmos_stream.simulation.settings import (
    DataSettings,
    PopulationSettings,
    RunSettings,
    SimulationSettings,
    SpeedSettings,
)
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.hooks import hooks_of
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.tensor_task import Batches

POOLED, ALONE, SYNCHRONOUS, ASYNCHRONOUS, PERSONAL = "pooled", "alone", "synchronous", "asynchronous", "personalised"
ARMS = (POOLED, ALONE, SYNCHRONOUS, ASYNCHRONOUS, PERSONAL)
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm came to with one seed.

    at_home: the metrics over the test rows of all sites, each site's measured with the model that the site has.
    everywhere: those of one model over all test rows; where each site has its own, the mean over the sites. by_site:
    at each site, those of the model that the site has over the site's own test rows. reached: when it was near pooled
    training, in seconds of the scenario's clock. updates: how many were folded. points: the versions.
    """

    at_home: Mapping[str, float]
    everywhere: Mapping[str, float]
    by_site: Mapping[str, Mapping[str, float]]
    reached: float | None = None
    updates: int = 0
    points: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """What all arms came to: by arm, one outcome a seed. Measured on these rows of the sites."""

    scenario: Scenario
    settings: Settings
    seeds: Sequence[int]
    rows: Rows
    outcomes: Mapping[str, Sequence[Outcome]]


def run_study(
    scenario: Scenario,
    settings: Settings,
    seeds: Sequence[int],
    progress: Callable[[str], object] = print,
    rows: Rows = "test",
    arms: Sequence[str] = ARMS,
) -> Study:
    """Run every arm with every seed; a seed is that of the split, the weights and the batches.

    Pooled training is run whatever `arms` says, since the others are told by how near they come to it.

    Raises:
        ConfigError: The settings ask for what a scenario's clock does not know.
    """
    own = scenario.defaults.get("client", {}).get("local_steps")
    if settings.client.local_steps != own:
        steps = "whole epochs" if own is None else f"{own} steps"
        raise ConfigError(
            f"client.local_steps: the clock of {scenario.name} is that of {steps} an update; leave it out"
        )
    outcomes: dict[str, list[Outcome]] = {}
    for seed in seeds:
        run = _Run(scenario, settings.changed(task={"seed": seed, "entry": scenario.entry}), rows)
        for arm, outcome in run.outcomes(arms):
            outcomes.setdefault(arm, []).append(outcome)
            progress(f"seed {seed}: {arm}")
    return Study(scenario, settings, tuple(seeds), rows, outcomes)


def simulated(scenario: Scenario, settings: Settings, splits: Mapping[str, Split]) -> RunSettings:
    """The scenario's federation as a simulation: a client for each site, as slow as the scenario says."""
    return RunSettings(
        **{name: getattr(settings, name) for name in Settings.model_fields if name != "stop"},  # the clock ends it
        simulation=SimulationSettings(
            name=scenario.name,
            updates=_NO_LIMIT,
            seconds=scenario.seconds,
            metric=scenario.metric,
            mode=scenario.mode,
            training="loop",
        ),
        population=PopulationSettings(clients=len(splits)),
        data=DataSettings(split="task", sites=tuple(splits)),
        speed=SpeedSettings(
            kind="trace",
            trace=tuple(scenario.seconds_of(site, split) for site, split in splits.items()),
            seconds=1.0,
            jitter=0.0,
        ),
    )


class _Run:
    """All arms with one seed."""

    def __init__(self, scenario: Scenario, settings: Settings, rows: Rows) -> None:
        self._scenario, self._settings = scenario, settings
        self._task = load_task(settings.task, settings.client)
        own = scenario.task(settings.task, settings.client)
        self._splits: Mapping[str, Split] = {site: own.split(site) for site in own.sites}
        self._held = HeldBack(self._task, list(self._splits.values()), rows)
        self._near = float("nan")

    def outcomes(self, arms: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
        pooled = self._pooled()
        self._near = self._scenario.near_to(pooled.at_home[self._scenario.metric])
        yield POOLED, pooled
        if ALONE in arms:
            yield ALONE, self._alone()
        if SYNCHRONOUS in arms:
            yield SYNCHRONOUS, self._federated(SYNCHRONOUS, self._in_rounds())
        if ASYNCHRONOUS in arms:
            yield ASYNCHRONOUS, self._federated(ASYNCHRONOUS, self._settings)
        if PERSONAL in arms and self._scenario.personal is not None and self._settings.task.share == "all":
            own = self._settings.changed(task={"share": self._scenario.personal})
            yield PERSONAL, self._federated(PERSONAL, own)

    def _pooled(self) -> Outcome:
        """One model, trained on the rows of all sites in one place."""
        rows = joined([split.train for split in self._splits.values()])
        seed = derive_seed(self._settings.task.seed, "pooled batches")
        batches = Batches(*rows, self._settings.client.batch_size, seed)
        trainer, best = _trainer(self._task, self._settings), Best(self._held)
        for _ in range(self._scenario.pooled_epochs):
            trainer.run_epoch(batches)
            best.show([trainer.model])
        return Outcome(best.at_home, best.everywhere, self._named(best.by_site))

    def _alone(self) -> Outcome:
        """A model for each site, trained on its rows alone; each site takes its best by its own validation rows."""
        models = [self._alone_at(number, site) for number, site in enumerate(self._splits)]
        answers = self._held.answers(models)
        by_site = self._named([self._held.scored([part]) for part in answers])
        return Outcome(self._held.scored(answers), self._held.everywhere(models), by_site)

    def _alone_at(self, number: int, site: str) -> nn.Module:
        client = self._settings.client.model_copy(update={"data": site})
        task = load_task(self._settings.task, client)
        trainer, batches = _trainer(task, self._settings), task.train_batches()
        best, least = copy.deepcopy(trainer.model), float("inf")
        for _ in range(self._scenario.alone_epochs):
            trainer.run_epoch(batches)
            loss = self._held.loss_at(trainer.model, number)
            if loss < least:
                best, least = copy.deepcopy(trainer.model), loss
        return best

    def _in_rounds(self) -> Settings:
        """FedAvg (McMahan et al. 2017): in each round every site trains, and all wait for the slowest."""
        plain = {
            "aggregation": fedavg_of(len(self._splits)),
            "staleness": StalenessSettings(),
            "server_optimizer": ServerOptimizerSettings(),
        }
        patient = {"wait_seconds": 2 * self._scenario.seconds}
        return self._settings.model_copy(update=plain).changed(client=patient)

    def _federated(self, arm: str, settings: Settings) -> Outcome:
        simulation = simulated(self._scenario, settings, self._splits)
        best = Best(self._held)
        result = simulate(
            Arm(arm, simulation, {}),
            settings.task.seed,
            measuring=lambda _, scene: AtSites(best, scene, len(self._splits)),
        )
        reached = result.reached(self._near, simulation.simulation)
        return Outcome(
            at_home=best.at_home,
            everywhere=best.everywhere,
            by_site=self._named(best.by_site),
            reached=None if reached is None else reached.seconds,
            updates=result.folded,
            points=result.points,
        )

    def _named(self, by_site: Sequence[Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        return dict(zip(self._splits, by_site, strict=True))


def _trainer(task: Task, settings: Settings) -> LocalTrainer:
    """A new model of the task, with its optimiser, loss and hooks."""
    model = task.model()
    hooks = (*task.hooks(), *hooks_of(settings.client, settings.task.share))
    return LocalTrainer(model, task.optimizer(model), task.loss, hooks)
