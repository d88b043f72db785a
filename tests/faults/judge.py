"""Was every update counted exactly once, and are the versions what they say? From the log and the clients' journals."""

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llmos_stream.codec import Residual, decode, encode_delta, weights_digest
from llmos_stream.config import Settings
from llmos_stream.core.pipeline import pipeline_of
from llmos_stream.log.snapshots import pay
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.client import ClientState
from llmos_stream.types import VersionKind
from tests.faults.drivers import journal_of, state_of
from tests.faults.log import Logged, Sending, elements_of
from tests.faults.oracle import Oracle, Vector
from tests.faults.plan import Plan
from tests.faults.sites import initial, learnt_of

_TOLERANCE = 2e-5
_LET_GO = 1 / 13
"""Share of what is owed that its own rounding (int4, to nearest) may leave out."""
_RESIDUAL_TOLERANCE = 1e-4


@dataclass(slots=True)
class Verdict:
    """What is wrong, by kind; all empty where nothing is."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    digest_mismatches: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        kinds = {"lost": self.lost, "repeated": self.repeated, "digest": self.digest_mismatches, "": self.others}
        return [f"{kind}: {what}".removeprefix(": ") for kind, found in kinds.items() for what in found]


def journals(plan: Plan, folder: Path) -> dict[str, set[int]]:
    """The updates that each client has handed to the log, or found to be there."""
    return {name: journal_of(folder, name).numbers("sending", "published") for name in plan.names}


def judge(plan: Plan, settings: Settings, logged: Logged, sent: Mapping[str, Set[int]]) -> Verdict:
    verdict = Verdict()
    manifests = _manifests(logged, verdict)
    _count(plan, logged, sent, manifests, verdict)
    if not verdict.others:  # else the versions do not follow from each other
        _compare_with_the_oracle(logged, manifests, _replay(settings, logged, manifests, verdict), verdict)
        first = logged.versions[0].weights if logged.versions else None
        if first is not None and not torch.equal(first, initial(plan, settings).weights):
            verdict.others.append("version 0 is not the initial model")
    return verdict


def _manifests(logged: Logged, verdict: Verdict) -> list[list[Sending]]:
    """The updates of each version, as they lie in the log where the manifest says; checks what it says of them."""
    numbers = [version.head.number for version in logged.versions]
    if numbers != list(range(len(numbers))):
        verdict.others.append(f"the versions in the log are {numbers}")
    if logged.latest != len(numbers) - 1:
        verdict.others.append(f"control points to version {logged.latest}, the log has {len(numbers)}")
    manifests = []
    moved: dict[tuple[int, int] | None, int] = {}
    for version in logged.versions:
        number = version.head.number
        # Since then its updates may have waited: others move alone where the model is cut into fragments.
        earliest, latest = moved.get(version.head.range, 0) if version.head.range else number - 1, number - 1
        if version.head.parent != (number - 1 if number else None):
            verdict.others.append(f"version {number} names the parent {version.head.parent}")
        sendings = []
        for item in version.head.manifest:
            sending = logged.updates.get((item.partition, item.offset))
            if sending is None:
                verdict.others.append(f"version {number} names an update at {item.offset} that is not there")
                continue
            head = sending.head
            limits = version.head.rule.get("limits")
            most = limits.get("examples", math.inf) if isinstance(limits, Mapping) else math.inf
            said = (item.client_id, item.sequence, item.num_examples, item.payload_digest, version.head.range)
            if said != (head.client_id, head.sequence, min(head.num_examples, most), head.payload_digest, head.range):
                verdict.others.append(f"version {number}: the manifest and the update at {item.offset} differ")
            folded_at = head.base_version + item.staleness
            if not earliest <= folded_at <= latest:
                verdict.others.append(f"version {number}: the update at {item.offset} was folded at {folded_at}")
            earliest = folded_at
            sendings.append(sending)
        moved[version.head.range] = number
        manifests.append(sendings)
    return manifests


def _count(
    plan: Plan, logged: Logged, sent: Mapping[str, Set[int]], manifests: list[list[Sending]], verdict: Verdict
) -> None:
    folded = [sending for manifest in manifests for sending in manifest]
    for label, counts in (
        ("sequence", Counter(sending.identity for sending in folded)),
        ("update", Counter(sending.name for sending in folded)),
    ):
        verdict.repeated += [f"{label} {one} {times} times" for one, times in counts.items() if times > 1]
    contents: dict[tuple[str, int], set[bytes]] = {}
    for sending in logged.updates.values():
        contents.setdefault(sending.identity, set()).add(sending.head.payload_digest)
    verdict.others += [
        f"{one} was sent with different contents" for one, digests in contents.items() if len(digests) > 1
    ]
    there = {sending.name for sending in folded}
    refused = {_refused_name(entry) for entry in logged.refused}
    wanted = {(client, number) for client, numbers in sent.items() for number in numbers}
    verdict.lost += [f"{name}" for name in sorted(wanted - there - refused)]
    verdict.others += [f"{name} was folded, but never sent" for name in sorted(there - wanted)]
    verdict.others += [f"quarantine: {entry.get('reason')}: {entry.get('detail')}" for entry in logged.refused]
    if len(wanted) < plan.total and not verdict.lost:
        verdict.others.append(f"{len(wanted)} updates were sent, not {plan.total}")


def _refused_name(entry: Mapping[str, object]) -> tuple[str, int] | None:
    match entry.get("head"):
        case {"client_id": str(client), "metrics": {"n": int() | float() as number}}:
            return client, int(number)
        case _:
            return None


def _compare_with_the_oracle(
    logged: Logged, manifests: list[list[Sending]], owed: list[Vector], verdict: Verdict
) -> None:
    """Each version from the one before: what readers have and what they are owed is what the formulas say."""
    if not logged.versions:
        return
    first = logged.versions[0]
    oracle = Oracle(first.head.rule, first.weights.numpy().astype(np.float64))
    for place, (version, manifest) in enumerate(zip(logged.versions[1:], manifests[1:], strict=True)):
        expected = oracle.fold(
            [
                (one.head.base_version, item.staleness, item.num_examples, one.delta.numpy().astype(np.float64))
                for item, one in zip(version.head.manifest, manifest, strict=True)
            ],
            elements_of(version.head),
        )
        weights = version.weights.numpy().astype(np.float64)
        error = float(np.abs(expected + owed[place] - weights - owed[place + 1]).max())
        if error > _TOLERANCE * (1 + float(np.abs(expected).max())) + _LET_GO * float(np.abs(owed[place + 1]).max()):
            verdict.others.append(f"version {version.head.number} is {error:.2g} off the formulas")
        oracle.history[-1] = weights


def _replay(settings: Settings, logged: Logged, manifests: list[list[Sending]], verdict: Verdict) -> list[Vector]:
    """Fold everything again, bit for bit. Returns what readers are owed after each version."""
    if not logged.versions:
        return []
    before, layout = logged.versions[0].weights, logged.versions[0].layout
    residuals: dict[tuple[int, int] | None, Residual] = {}
    owed = [np.zeros(before.numel())]
    count = settings.aggregation.fragments
    fragments = layout.fragments(count) if count > 1 else ()
    pipelines = local_rule(settings).pipelines(0, before, fragments=fragments)
    for version, manifest in zip(logged.versions[1:], manifests[1:], strict=True):
        elements = version.head.range
        pipeline = pipeline_of(pipelines, elements)
        for item, sending in zip(version.head.manifest, manifest, strict=True):
            pipeline.fold(item, sending.delta, 0.0)
        weights, _ = pipeline.flush(version.head.number - 1, before, recorded=True)
        left = owed[-1].copy()
        if version.head.kind is VersionKind.FULL:
            pay(weights, layout, residuals)
            residuals.clear()
            left[:] = 0
        else:
            old, new = (layout.moving(flat, elements)[0] for flat in (before, weights))
            _, residual = encode_delta(old, new, residuals.get(elements), version.head.codec)
            residuals[elements] = residual
            left[elements_of(version.head)] = decode(residual.parts, residual.codec, new.numel()).double().numpy()
        owed.append(left)
        before = weights
        if weights_digest(weights) != version.head.weights_digest:
            verdict.digest_mismatches.append(f"version {version.head.number}")
    return owed


def judge_residuals(plan: Plan, logged: Logged, sent: Mapping[str, Set[int]], folder: Path, verdict: Verdict) -> None:
    """What was sent, what is still owed and what is carried add up to what was learnt (`codec.feedback`, `carry`)."""
    for client, numbers in sent.items():
        known = [learnt_of(plan, client, number, folder) for number in sorted(numbers)]
        missing = torch.stack(known).double().sum(0)
        different = {sending.name: sending for sending in logged.updates.values() if sending.name[0] == client}
        for sending in different.values():
            missing[sending.elements] -= sending.delta.double()
        with ClientState(client, state_of(folder, client)) as state:
            state.restore(len(missing))
            residual, carried = state.residual(), state.carry.carried
        if residual is not None:
            missing -= residual.double()
        if carried is not None:
            missing -= carried.learnt.double()
        error = float(missing.abs().max())
        if error > _RESIDUAL_TOLERANCE:
            verdict.others.append(
                f"{client}: what was sent, with what is owed and carried, is {error:.2g} off what was learnt"
            )
