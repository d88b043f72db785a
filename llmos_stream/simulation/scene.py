"""What the parts of a simulated run share."""

from dataclasses import dataclass

from llmos_stream.codec import Layout
from llmos_stream.errors import ConfigError
from llmos_stream.simulation.aggregator import Aggregator
from llmos_stream.simulation.clock import VirtualClock
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.job import Trainer
from llmos_stream.simulation.population import Chance, Population
from llmos_stream.simulation.results import Tally
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.trainers import make_trainer
from llmos_stream.training import Task, load_task


@dataclass(frozen=True, slots=True)
class Scene:
    """One run's. `data` is None where the sites are those of the task."""

    clock: VirtualClock
    chance: Chance
    population: Population
    task: Task
    data: SplitData | None
    trainer: Trainer
    layout: Layout
    aggregator: Aggregator
    tally: Tally


def make_scene(settings: RunSettings, seed: int) -> Scene:
    """All of it at the beginning of a run.

    Raises:
        ConfigError: The settings cannot be simulated.
        TaskError: The task does not load.
    """
    count = settings.population.clients
    task = load_task(settings.task, settings.client)
    tensors = None if settings.data.split == "task" else task.tensors()
    if tensors is None and settings.data.split != "task":
        raise ConfigError(
            f"data.split: task {settings.task.entry} gives no tensors to split (Task.tensors); say task, "
            "for the sites that it has"
        )
    data = None if tensors is None else SplitData(tensors, settings.data, settings.client, count, seed)
    trainer = make_trainer(task, settings, data)
    layout, weights = trainer.begin()
    return Scene(
        clock=VirtualClock(),
        chance=Chance(seed),
        population=Population(settings, seed),
        task=task,
        data=data,
        trainer=trainer,
        layout=layout,
        aggregator=Aggregator(settings, layout, weights),
        tally=Tally(settings.simulation, count),
    )
