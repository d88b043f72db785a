"""A judge that never finds anything is worth nothing: here is what it must find."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmos_stream.broker import MemoryBroker
from llmos_stream.codec import weights_digest
from llmos_stream.config import Settings
from llmos_stream.log.versions import Version
from tests.faults.host import InTasks
from tests.faults.judge import Verdict, journals, judge, judge_residuals
from tests.faults.log import Logged, read_log
from tests.faults.plan import Plan
from tests.faults.run import Run

PLAN = Plan(5, scenario="fedbuff-momentum", codec="int8")
Case = tuple[Settings, Logged, dict[str, set[int]], Path]


async def _run(plan: Plan, folder: Path) -> Case:
    """A run without faults, and nothing to find in it."""
    broker, settings = MemoryBroker(), plan.settings("f", None)
    outcome = await Run(plan, InTasks(plan, broker, settings, folder), None, broker, settings).run()
    assert outcome.surprises == []
    logged, sent = await read_log(broker, settings, plan.numel), journals(plan, folder)
    verdict = judge(plan, settings, logged, sent)
    judge_residuals(plan, logged, sent, folder, verdict)
    assert verdict.findings == []
    return settings, logged, sent, folder


@pytest.fixture
async def case(tmp_path: Path) -> Case:
    """Such a run of a model that moves as a whole."""
    found = await _run(PLAN, tmp_path)
    assert len(found[1].versions) == 7
    return found


def _changed(logged: Logged, number: int, change: Callable[[Version], Version]) -> Logged:
    versions = list(logged.versions)
    versions[number] = change(versions[number])
    return replace(logged, versions=versions)


def _judged(case: Case, logged: Logged) -> Verdict:
    return judge(PLAN, case[0], logged, case[2])


async def test_an_update_in_no_manifest_is_lost(case: Case) -> None:
    _, logged, _, _ = case
    item = logged.versions[3].head.manifest[1]

    def without(version: Version) -> Version:
        return replace(version, head=replace(version.head, manifest=version.head.manifest[:1]))

    verdict = _judged(case, _changed(logged, 3, without))
    name = logged.updates[item.partition, item.offset].name
    assert verdict.lost == [str(name)]
    assert len(verdict.digest_mismatches) > 0
    assert any("off the formulas" in what for what in verdict.others)


async def test_an_update_in_two_manifests_is_repeated(case: Case) -> None:
    _, logged, _, _ = case

    def twice(version: Version) -> Version:
        again = replace(logged.versions[2].head.manifest[0], staleness=version.head.manifest[0].staleness)
        return replace(version, head=replace(version.head, manifest=(*version.head.manifest, again)))

    verdict = _judged(case, _changed(logged, 3, twice))
    assert len(verdict.repeated) == 2  # its sequence and its number
    assert verdict.lost == []


async def test_weights_that_nobody_can_make_again_are_found(case: Case) -> None:
    _, logged, _, _ = case

    def nudged(version: Version) -> Version:
        weights = version.weights.clone()
        weights[0] = torch.nextafter(weights[0], torch.tensor(9.0))
        return replace(version, weights=weights, head=replace(version.head, weights_digest=weights_digest(weights)))

    verdict = _judged(case, _changed(logged, 6, nudged))
    assert verdict.digest_mismatches == ["version 6"]
    assert verdict.others == []  # within the tolerance of the formulas

    def shifted(version: Version) -> Version:
        return replace(version, weights=version.weights + 1e-3)

    assert any("off the formulas" in what for what in _judged(case, _changed(logged, 6, shifted)).others)


async def test_gaps_and_pointers_into_nothing_are_found(case: Case) -> None:
    _, logged, _, _ = case
    gap = replace(logged, versions=[*logged.versions[:2], *logged.versions[3:]])
    assert any("the versions in the log are" in what for what in _judged(case, gap).others)
    assert any("control points to" in what for what in _judged(case, replace(logged, latest=3)).others)
    place = next(iter(logged.updates))
    missing = {at: sending for at, sending in logged.updates.items() if at != place}
    assert any("not there" in what for what in _judged(case, replace(logged, updates=missing)).others)


async def test_a_refusal_is_told_and_is_no_loss(case: Case) -> None:
    settings, logged, sent, _ = case
    entry = {"reason": "too_stale", "detail": "", "head": {"client_id": "client-0", "metrics": {"n": 99.0}}}
    more = {**sent, "client-0": sent["client-0"] | {99}}
    assert judge(PLAN, settings, logged, more).lost == ["('client-0', 99)"]
    verdict = judge(PLAN, settings, replace(logged, refused=[entry]), more)
    assert verdict.lost == []
    assert any("quarantine" in what for what in verdict.others)


async def test_a_residual_that_was_not_kept_is_found(case: Case) -> None:
    _, logged, sent, folder = case
    for name in PLAN.names:
        for file in (folder / name / "state").glob("residual*"):
            file.unlink()
    verdict = Verdict()
    judge_residuals(PLAN, logged, sent, folder, verdict)
    assert len(verdict.others) == PLAN.clients


CUT = Plan(5, scenario="fedbuff-momentum", codec="topk2", model="fragments", fragments=3)


@pytest.fixture
async def cut(tmp_path: Path) -> Case:
    """Such a run of a model in fragments."""
    return await _run(CUT, tmp_path)


async def test_a_fragment_that_moves_by_another_ones_updates_is_found(cut: Case) -> None:
    settings, logged, sent, _ = cut
    assert len({version.head.range for version in logged.versions[1:]}) == 3
    number = next(
        number
        for number, version in enumerate(logged.versions)
        if number > 1 and version.head.range != logged.versions[1].head.range
    )
    other = logged.versions[1].head.manifest[0]

    def swapped(version: Version) -> Version:
        return replace(version, head=replace(version.head, manifest=(other, *version.head.manifest[1:])))

    verdict = judge(CUT, settings, _changed(logged, number, swapped), sent)
    assert len(verdict.lost) == 1
    assert any("the manifest and the update at" in what for what in verdict.others)


async def test_a_staleness_that_nobody_had_is_found(cut: Case) -> None:
    settings, logged, sent, _ = cut

    def later(version: Version) -> Version:
        items = (replace(item, staleness=item.staleness + 1) for item in version.head.manifest)
        return replace(version, head=replace(version.head, manifest=tuple(items)))

    assert any("was folded at" in what for what in judge(CUT, settings, _changed(logged, 2, later), sent).others)


async def test_weights_that_change_outside_the_fragment_are_found(cut: Case) -> None:
    settings, logged, sent, _ = cut
    elements = logged.versions[2].head.range
    assert elements is not None

    def shifted(version: Version) -> Version:
        weights = version.weights.clone()
        weights[elements[0] - 1 if elements[0] else elements[1]] += 1e-3
        return replace(version, weights=weights)

    verdict = judge(CUT, settings, _changed(logged, 2, shifted), sent)
    assert any("version 2 is" in what and "off the formulas" in what for what in verdict.others)


async def test_a_carry_that_was_not_kept_is_found(cut: Case) -> None:
    _, logged, sent, folder = cut
    for name in CUT.names:
        for file in (folder / name / "state").glob("carry*"):
            file.unlink()
    verdict = Verdict()
    judge_residuals(CUT, logged, sent, folder, verdict)
    assert len(verdict.others) == CUT.clients
