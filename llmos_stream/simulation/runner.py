"""All runs of an experiment, side by side in processes. Each leaves a file, so that what is done is not done again.

What a run comes to does not depend on how many go on at a time.
"""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

import orjson

from llmos_stream.errors import ConfigError, LlmosError, TaskError
from llmos_stream.simulation.experiment import Arm, Experiment
from llmos_stream.simulation.results import Result, result_of
from llmos_stream.simulation.run import simulate

_LOOK_SECONDS = 0.2
_NAME_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Told:
    """How far a run is: so many updates; or that it is done, or was before."""

    arm: str
    seed: int
    updates: int
    result: Result | None = None


Listener = Callable[[Told], None]


def run_experiment(experiment: Experiment, folder: Path, workers: int, listener: Listener) -> list[Result]:
    """Do what is not done yet, and return all results in the order of arms and seeds.

    Raises:
        ConfigError: The settings of a run make no sense. Those that are done stay.
        TaskError: Its task fails.
        LlmosError: A process was ended from outside.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    wanted = [(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
    found: dict[tuple[str, int], Result] = {}
    todo = []
    for arm, seed in wanted:
        known = _read(_path(folder, arm, seed))
        if known is None:
            todo.append((arm, seed))
        else:
            found[arm.name, seed] = known = replace(known, arm=arm.name)
            listener(Told(arm.name, seed, known.updates, known))
    for result in _run_all(todo, folder, min(workers, len(todo)), listener):
        found[result.arm, result.seed] = result
    return [found[arm.name, seed] for arm, seed in wanted]


def _run_all(todo: Sequence[tuple[Arm, int]], folder: Path, workers: int, listener: Listener) -> Iterator[Result]:
    if workers > 1:
        yield from _side_by_side(todo, folder, workers, listener)
        return
    for arm, seed in todo:
        result = _run(arm, seed, folder, listener)
        listener(Told(arm.name, seed, result.updates, result))
        yield result


def _side_by_side(todo: Sequence[tuple[Arm, int]], folder: Path, workers: int, listener: Listener) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    progress: Queue[Told] = context.Queue()
    with ProcessPoolExecutor(workers, context, _begin, (progress,)) as pool:
        running: set[Future[Result]] = {pool.submit(_work, arm, seed, folder) for arm, seed in todo}
        try:
            while running:
                done, running = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
                _pass_on(progress, listener)
                for future in done:
                    result = future.result()
                    listener(Told(result.arm, result.seed, result.updates, result))
                    yield result
        except BrokenProcessPool:
            raise LlmosError("a run was ended from outside, by the system perhaps for want of memory") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pass_on(progress: "Queue[Told]", listener: Listener) -> None:
    while True:
        try:
            listener(progress.get_nowait())
        except Empty:
            return


_progress: "Queue[Told] | None" = None


def _begin(progress: "Queue[Told]") -> None:
    """In a worker: where it tells how far it is."""
    global _progress  # noqa: PLW0603  a worker has one
    _progress = progress


def _work(arm: Arm, seed: int, folder: Path) -> Result:
    return _run(arm, seed, folder, _tell)


def _tell(told: Told) -> None:
    if _progress is not None:
        _progress.put(told)


def _run(arm: Arm, seed: int, folder: Path, listener: Listener) -> Result:
    try:
        result = simulate(arm, seed, lambda updates: listener(Told(arm.name, seed, updates)))
    except (ConfigError, TaskError) as error:
        raise type(error)(f"{arm.name}, seed {seed}: {error}") from None
    path = _path(folder, arm, seed)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(orjson.dumps(asdict(result)))
    unfinished.replace(path)
    return result


def _path(folder: Path, arm: Arm, seed: int) -> Path:
    name = re.sub(r"[^A-Za-z0-9._=-]+", "-", arm.name)[:_NAME_CHARACTERS]
    return folder / "runs" / f"{name}-{seed}-{arm.fingerprint(seed)}.json"


def _read(path: Path) -> Result | None:
    """A result that is there; None where there is none that can be read."""
    try:
        return result_of(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
