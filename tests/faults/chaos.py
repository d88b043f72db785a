"""Many runs, each from its seed, several at a time, on one Kafka."""

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from llmos_stream.broker import LocalKafka
from llmos_stream.runtime import run_all
from tests.faults.net import kill_and_start
from tests.faults.plan import Plan, plan_of
from tests.faults.trials import Trial, try_on_kafka


@dataclass(slots=True)
class Tally:
    """What the runs so far amount to."""

    runs: int = 0
    kills: int = 0
    lost: int = 0
    repeated: int = 0
    digest_mismatches: int = 0
    seeds_failed: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    begun: float = field(default_factory=monotonic)

    def add(self, trial: Trial) -> None:
        self.runs += 1
        self.models[trial.plan.model] += 1
        self.kills += trial.outcome.kills
        self.lost += len(trial.verdict.lost)
        self.repeated += len(trial.verdict.repeated)
        self.digest_mismatches += len(trial.verdict.digest_mismatches)
        self.faults.update(str(point.fault) for point in trial.outcome.struck)
        if trial.findings:
            self.seeds_failed.append(trial.plan.seed)

    def fail(self, seed: int) -> None:
        """A run that could not be judged."""
        self.runs += 1
        self.seeds_failed.append(seed)

    @property
    def good(self) -> bool:
        return not (self.lost or self.repeated or self.digest_mismatches or self.seeds_failed)

    def summary(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "models": dict(sorted(self.models.items())),
            "kills": self.kills,
            "lost": self.lost,
            "repeated": self.repeated,
            "digest_mismatches": self.digest_mismatches,
            "seeds_failed": sorted(self.seeds_failed),
            "faults": dict(sorted(self.faults.items())),
            "seconds": round(monotonic() - self.begun, 1),
        }


class Chaos:
    """Runs seeds on one Kafka. `said` hears of each seed that is over: its plan and what was found."""

    def __init__(self, kafka: LocalKafka, folder: Path, said: Callable[[Plan, list[str]], None]) -> None:
        self.tally = Tally()
        self._kafka = kafka
        self._folder = folder
        self._said = said
        self._one_at_a_time = threading.Lock()

    async def run(self, seeds: range, jobs: int, model: str | None = None) -> None:
        """Run the plan of each seed, `jobs` at a time; with this one of MODELS, where it is given."""
        left = iter([plan_of(seed, model) for seed in seeds])
        await run_all(*(self._work(left) for _ in range(min(jobs, len(seeds)))))

    async def _work(self, left: Iterator[Plan]) -> None:
        for plan in left:
            folder = self._folder / str(plan.seed)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                trial = await try_on_kafka(plan, self._kafka.bootstrap_servers, self._restart, folder)
            except Exception as error:  # noqa: BLE001 - the other seeds go on
                self.tally.fail(plan.seed)
                self._said(plan, [f"the run could not be judged: {_reason(error)}"])
                continue
            self.tally.add(trial)
            if not trial.findings:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            self._said(plan, trial.findings)

    def _restart(self) -> None:
        with self._one_at_a_time:
            kill_and_start(self._kafka)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
