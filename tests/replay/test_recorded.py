"""Logs that earlier releases wrote: today's code replays them to the same digests, goes on, and shows them."""

import asyncio
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from llmos_stream.broker import MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.replay.audit import Presence, audit
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import load_task
from llmos_stream.types import VersionKind
from tests.cli.aids import Run
from tests.cli.fixtures import _own_terminal_and_home, llmos
from tests.replay.aids import replay_log, verdicts_of
from tests.replay.recorded.log_file import RecordedRun, runs_of

__all__ = ["_own_terminal_and_home", "llmos"]

_FOLDER = Path(__file__).parent / "recorded"
_RELEASES = sorted(path.name for path in _FOLDER.glob("*.msgpack.zst"))
_HERE = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine()}
_of = cache(runs_of)


@pytest.fixture(params=_RELEASES)
def runs(request: pytest.FixtureRequest) -> Mapping[str, RecordedRun]:
    """The runs of each release in turn."""
    return _of(_FOLDER / request.param)


@pytest.fixture(params=["momentum", "adam", "fedasync"])
def run(request: pytest.FixtureRequest, runs: Mapping[str, RecordedRun]) -> RecordedRun:
    return runs[request.param]


async def test_every_version_is_rebuilt_to_the_digest_that_was_published(run: RecordedRun) -> None:
    broker = await run.load()
    async with replay_log(broker, run.settings_now()) as log:
        heads = [entry.head for entry in log.index.versions.values()]
        verdicts = await verdicts_of(log)
    assert [head.weights_digest.hex() for head in heads] == run.digests
    assert [verdict.published_digest for verdict in verdicts] == run.digests
    assert verdicts[0].outcome is RebuildOutcome.INITIAL
    for head, verdict in zip(heads[1:], verdicts[1:], strict=True):
        if dict(head.build) == _HERE:
            assert verdict.outcome is RebuildOutcome.MATCH, verdict
        else:  # another PyTorch or processor may round another way
            assert verdict.outcome in (RebuildOutcome.MATCH, RebuildOutcome.DIFFERS), verdict
            assert verdict.difference is None or verdict.difference.relative_l2 < 1e-5
    assert {head.kind for head in heads} == {VersionKind.FULL, VersionKind.DELTA}
    assert max(item.staleness for head in heads for item in head.manifest) >= 2


async def test_everybody_goes_on_from_it(run: RecordedRun) -> None:
    """The aggregator takes over with the next version, a client trains on it; all is evaluated and replays."""
    broker = await run.load()
    last = len(run.digests) + 3
    newcomer = {"id": "newcomer", "shard": 1, "wait_seconds": 0.05}
    settings = run.settings_now(stop={"max_versions": last}, client=newcomer)
    evaluation = await _train_on(broker, settings)
    assert evaluation == last
    async with replay_log(broker, settings) as log:
        heads = [entry.head for entry in log.index.versions.values()]
        verdicts = await verdicts_of(log, range(len(run.digests), last + 1))
    assert [head.weights_digest.hex() for head in heads][: len(run.digests)] == run.digests
    assert [head.number for head in heads] == list(range(last + 1))
    assert {verdict.outcome for verdict in verdicts} == {RebuildOutcome.MATCH}
    identities = [(item.client_id, item.sequence) for head in heads for item in head.manifest]
    assert len(set(identities)) == len(identities)


async def _train_on(broker: MemoryBroker, settings: Settings) -> int:
    """Run every role until the run has ended; returns the version that was evaluated last."""
    task, shutdown = load_task(settings.task, settings.client), Shutdown()
    async with Offload(2) as offload, asyncio.TaskGroup() as roles:
        roles.create_task(run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown))
        evaluating = roles.create_task(run_evaluator(broker, settings, task, offload, shutdown))
        with ClientState("newcomer", None) as state:
            own = load_task(settings.task, settings.client)
            await run_client(broker, settings, own, state, offload, shutdown)
        evaluation = await evaluating
    assert evaluation is not None
    return evaluation.version


async def test_what_each_version_was_made_of_is_found(run: RecordedRun) -> None:
    broker = await run.load()
    async with replay_log(broker, run.settings_now()) as log:
        for number in log.index.numbers:
            found = await audit(log, number)
            assert bool(found.items) == bool(number)
            assert {item.presence for item in found.items} <= {Presence.PRESENT}, number


def test_every_command_shows_it(run: RecordedRun, llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = asyncio.run(run.load())
    monkeypatch.setattr("llmos_stream.broker.connect", lambda settings: broker)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", run.federation)

    rows = llmos("versions", "list", "--json").json()
    assert [row["weights_digest"] for row in rows] == run.digests
    assert llmos("versions", "show", "--json").json()["weights_digest"] == run.digests[-1]
    audited = llmos("audit", "3", "--json").json()
    assert {item["log"] for item in audited["manifest"]} == {"present"}
    replayed = llmos("replay", "--json")
    assert replayed.status == 0, replayed
    for kind in sorted({record[0].rpartition(".")[2] for record in run.records}):
        offsets = [record[2] for record in run.records if record[0] == f"{run.federation}.{kind}" and record[1] == 0]
        lines = llmos("inspect", kind, "--last", len(offsets), "--json").out.splitlines()
        assert [json.loads(line)["offset"] for line in lines] == offsets, kind
