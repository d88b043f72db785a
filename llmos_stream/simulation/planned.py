"""Trainings whose results are not wanted yet: computed together with the first of them that is."""

from heapq import heappop, heappush

from llmos_stream.simulation.job import Job, Trainer


class Planned:
    """The trainings that are under way, by when they are due."""

    def __init__(self, trainer: Trainer, at_once: int) -> None:
        self._trainer = trainer
        self._at_once = at_once if trainer.batches else 1
        self._jobs: list[tuple[float, int, Job]] = []

    def add(self, job: Job, order: int) -> None:
        """A training that has begun; of those that are due at the same time, the lower `order` is first."""
        heappush(self._jobs, (job.due, order, job))

    def compute(self, job: Job) -> None:
        """Have a job trained, and with it those that are wanted soonest and are no more than twice as long.

        What is longer would go its last steps alone: it waits for others of its kind, until it is wanted itself.
        """
        if job.is_done:
            return
        jobs = [job]
        longer: list[tuple[float, int, Job]] = []
        while self._jobs and len(jobs) < self._at_once and len(longer) < self._at_once:
            entry = heappop(self._jobs)
            other = entry[2]
            if other is job or other.is_done:
                continue
            if other.examples <= 2 * job.examples:
                jobs.append(other)
            else:
                longer.append(entry)
        for entry in longer:
            heappush(self._jobs, entry)
        self._trainer.train(jobs)
