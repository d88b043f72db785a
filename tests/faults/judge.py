"""Was every update counted exactly once, and are the versions what they say? From the log and the clients' journals."""

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llmos_stream.codec import Residual, add_residual, decode, encode_delta, weights_digest
from llmos_stream.config import Settings
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.client import ClientState
from llmos_stream.types import VersionKind
from tests.faults.drivers import journal_of, state_of
from tests.faults.log import Logged, Sending
from tests.faults.model import delta_of, initial_of
from tests.faults.oracle import Oracle, Vector
from tests.faults.plan import Plan

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
        if first is not None and not torch.equal(first, initial_of(plan).weights):
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
    for version in logged.versions:
        number = version.head.number
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
            said = (item.client_id, item.sequence, item.num_examples, item.payload_digest, item.staleness)
            staleness = number - 1 - head.base_version
            if said != (head.client_id, head.sequence, min(head.num_examples, most), head.payload_digest, staleness):
                verdict.others.append(f"version {number}: the manifest and the update at {item.offset} differ")
            sendings.append(sending)
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
                (one.head.base_version, item.num_examples, one.delta.numpy().astype(np.float64))
                for item, one in zip(version.head.manifest, manifest, strict=True)
            ]
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
    before = logged.versions[0].weights
    residual: Residual | None = None
    owed = [np.zeros(before.numel())]
    pipeline = local_rule(settings).pipeline(0, before)
    for version, manifest in zip(logged.versions[1:], manifests[1:], strict=True):
        for item, sending in zip(version.head.manifest, manifest, strict=True):
            pipeline.fold(item, sending.delta, 0.0)
        weights, _ = pipeline.flush(version.head.number - 1, before, recorded=True)
        if version.head.kind is VersionKind.DELTA:
            _, residual = encode_delta(before, weights, residual, version.head.codec)
            owed.append(decode(residual.parts, residual.codec, weights.numel()).numpy().astype(np.float64))
        else:
            add_residual(weights, residual)
            residual = None
            owed.append(np.zeros(weights.numel()))
        before = weights
        if weights_digest(weights) != version.head.weights_digest:
            verdict.digest_mismatches.append(f"version {version.head.number}")
    return owed


def judge_residuals(plan: Plan, logged: Logged, sent: Mapping[str, Set[int]], folder: Path, verdict: Verdict) -> None:
    """What was sent and what is still owed add up to what was learnt (see `codec.ErrorFeedback`)."""
    for client, numbers in sent.items():
        learnt = torch.stack([delta_of(plan, client, number) for number in sorted(numbers)]).double().sum(0)
        different = {sending.name: sending.delta for sending in logged.updates.values() if sending.name[0] == client}
        total = torch.stack(list(different.values())).double().sum(0)
        with ClientState(client, state_of(folder, client)) as state:
            residual = state.residual()
        owed = torch.zeros_like(total) if residual is None else residual.double()
        error = float((learnt - total - owed).abs().max())
        if error > _RESIDUAL_TOLERANCE:
            verdict.others.append(f"{client}: what was sent, with what is owed, is {error:.2g} off what was learnt")
