"""A plan from its start to the verdict, in this process or on a real Kafka with real processes."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmos_stream.broker import Broker, MemoryBroker, Topics, connect
from llmos_stream.config import Settings
from llmos_stream.runtime import Shutdown
from llmos_stream.runtime.retry import keep_trying
from tests.faults.host import InTasks
from tests.faults.judge import Verdict, journals, judge, judge_residuals
from tests.faults.log import read_log
from tests.faults.net import net_of
from tests.faults.plan import Plan
from tests.faults.processes import InProcesses
from tests.faults.run import Outcome, Run
from tests.faults.sites import prepare

_SHOWN_OF_A_LOG = 10_000


@dataclass(frozen=True, slots=True)
class Trial:
    """A run that is over, and what is to be said of it."""

    plan: Plan
    outcome: Outcome
    verdict: Verdict

    @property
    def findings(self) -> list[str]:
        return [*self.verdict.findings, *self.outcome.surprises]


async def try_here(plan: Plan, folder: Path) -> Trial:
    """On the in-process broker, with roles that share this process."""
    broker = MemoryBroker()
    settings = plan.settings(f"faults-{plan.seed}", None, folder)
    prepare(plan, folder)
    outcome = await Run(plan, InTasks(plan, broker, settings, folder), None, broker, settings).run()
    return Trial(plan, outcome, await _judged(plan, settings, broker, folder))


async def try_on_kafka(
    plan: Plan, servers: str, kill_and_start: Callable[[], None], folder: Path, federation: str | None = None
) -> Trial:
    """On a real Kafka, with real processes. `folder` keeps their logs and states."""
    federation = federation or f"faults-{plan.seed}-{uuid.uuid4().hex[:8]}"
    settings = plan.settings(federation, servers, folder)
    await asyncio.to_thread(prepare, plan, folder)
    broker = connect(settings.broker)
    async with net_of(plan, servers, kill_and_start) as net:
        host = InProcesses(plan, federation, servers, folder, net.ports)
        outcome = await Run(plan, host, net, broker, settings).run()
    verdict = await keep_trying(lambda: _judged(plan, settings, broker, folder), Shutdown(), "reading the log again")
    assert verdict is not None
    trial, names = Trial(plan, outcome, verdict), list(Topics(federation).names)
    if trial.findings:
        await _show_ends(broker, names)
        _show_logs(folder)
    await keep_trying(lambda: broker.delete_topics(names), Shutdown(), "deleting the topics again")
    return trial


async def _show_ends(broker: Broker, topics: list[str]) -> None:
    """Print where the topics end for readers, and with what is undecided."""
    async with broker.reader(topics, start="earliest") as reader:
        print(await reader.end_offsets(), await reader.end_offsets(undecided=True), sep="\n")


def _show_logs(folder: Path) -> None:
    """Print what the roles said last."""
    for log in sorted(folder.glob("*/log")):
        print(f"--- {log.parent.name}", log.read_text()[-_SHOWN_OF_A_LOG:], sep="\n")


async def _judged(plan: Plan, settings: Settings, broker: Broker, folder: Path) -> Verdict:
    logged = await read_log(broker, settings, plan.numel)
    sent = journals(plan, folder)
    verdict = judge(plan, settings, logged, sent)
    if not verdict.findings:
        judge_residuals(plan, logged, sent, folder, verdict)
    return verdict
