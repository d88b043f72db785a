"""`make chaos`: random faults from seeds, on a real Kafka with real processes.

Prints one line of JSON; the exit status is 1 when an update was lost or counted twice, a version cannot be made
again bit for bit, or a run went wrong in another way. What failed keeps its logs in build/chaos/SEED.
"""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmos_stream.broker import LocalKafka
from llmos_stream.errors import BrokerError
from tests.faults.chaos import Chaos
from tests.faults.plan import MODELS, Plan
from tests.forkserver import context

FOLDER = Path("build/chaos")
_INTERRUPTED = 130
_FOR_LANGUAGE_MODELS = ("llmos_stream.training.llm.task", "transformers.models.llama.modeling_llama", "peft")
"""What takes seconds to import."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="how many at a time (default: 2)")
    parser.add_argument("--model", choices=MODELS, help="of every run (default: it follows from the seed)")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=FOLDER / "harness.log", filemode="w", level=logging.WARNING)
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("starting Kafka", total=arguments.runs)

        def said(plan: Plan, findings: list[str]) -> None:
            if findings:
                progress.console.print(_failure(plan, findings), style="red", markup=False, highlight=False)
            tally = chaos.tally
            progress.update(bar, advance=1, description=f"{tally.kills} kills, {len(tally.seeds_failed)} failed")

        try:
            _import_all()
            with LocalKafka() as kafka:
                chaos = Chaos(kafka, FOLDER, said)
                progress.update(bar, description="the first run")
                seeds = range(arguments.seed, arguments.seed + arguments.runs)
                asyncio.run(chaos.run(seeds, arguments.jobs, arguments.model))
        except BrokerError as error:
            progress.console.print(str(error), style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            return _INTERRUPTED
    sys.stdout.write(orjson.dumps(chaos.tally.summary()).decode() + "\n")
    return 0 if chaos.tally.good else 1


def _import_all() -> None:
    """Return once the server that forks the roles has imported everything: no run waits for that."""
    process = context(_FOR_LANGUAGE_MODELS).Process(target=os.getpid)
    process.start()
    process.join()


def _failure(plan: Plan, findings: list[str]) -> str:
    points = ", ".join(f"{point.fault} {point.role} at {point.at} ({point.extra})" for point in plan.points)
    return "\n  ".join(
        [
            f"seed {plan.seed} failed: {plan.scenario}, {plan.codec}, {_model(plan)}; {points}",
            *findings,
            f"again: python -m tests.faults --runs 1 --seed {plan.seed} --model {plan.model}",
            f"its logs: {FOLDER / str(plan.seed)}",
        ]
    )


def _model(plan: Plan) -> str:
    what = "adapters" if plan.trains else f"{plan.numel} elements"
    return what if plan.fragments == 1 else f"{what} in {plan.fragments} fragments"


if __name__ == "__main__":
    sys.exit(main())
