"""What a run is and what strikes it where. Everything follows from a seed, so that a run can be repeated."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from pathlib import Path
from typing import Any

from llmos_stream.config import Settings, load

AGGREGATOR = "aggregator"
BROKER = "broker"


@unique
class Fault(StrEnum):
    """What can go wrong. `Point.at` and `Point.extra` say where and how, as noted here."""

    KILL_BEFORE = "kill_before"  # an aggregator just before its at-th version transaction (from 1, of that process)
    KILL_IN = "kill_in"  # inside it: after `extra` sends, 0: after all of them, below 0: -extra ms into the commit
    KILL_AFTER = "kill_after"  # right after its commit returned
    HANG = "hang"  # stopped inside it while a standby waits, and woken once that one has published
    KILL_CLIENT = "kill_client"  # a client in the middle of its at-th update (from 0), after `extra` chunks
    KILL_CLIENT_AFTER_SEND = "kill_client_after_send"  # after the log acknowledged it
    RESTART_BROKER = "restart_broker"  # kill -9 and start again, once version `at` was committed
    CUT_NETWORK = "cut_network"  # for `extra` ms, once version `at` was committed
    DUPLICATE = "duplicate"  # the at-th update once more, whole, after `extra` further ones
    REORDER = "reorder"  # it arrives after the next one
    DELAY = "delay"  # it arrives after `extra` further ones, some versions late


KILLS = frozenset({Fault.KILL_BEFORE, Fault.KILL_IN, Fault.KILL_AFTER, Fault.KILL_CLIENT, Fault.KILL_CLIENT_AFTER_SEND})
OF_AGGREGATOR = frozenset({Fault.KILL_BEFORE, Fault.KILL_IN, Fault.KILL_AFTER, Fault.HANG})
OF_CLIENT = frozenset({Fault.KILL_CLIENT, Fault.KILL_CLIENT_AFTER_SEND, Fault.DUPLICATE, Fault.REORDER, Fault.DELAY})
OF_THE_NET = frozenset({Fault.RESTART_BROKER, Fault.CUT_NETWORK})


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A fault, whom it strikes (a client's name, AGGREGATOR or BROKER), and where."""

    fault: Fault
    role: str
    at: int
    extra: int = 0


SCENARIOS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fedbuff-sgd": {"aggregation": {"buffer_size": 2}},
    "fedbuff-momentum": {
        "aggregation": {"buffer_size": 2, "clip_norm": 2.0},
        "server_optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9},
    },
    "fedbuff-adam": {"aggregation": {"buffer_size": 3}, "server_optimizer": {"name": "adam", "lr": 0.05}},
    "fedbuff-deadline": {
        "aggregation": {"buffer_size": 5, "deadline_seconds": 0.2},
        "staleness": {"kind": "hinge", "a": 0.5, "b": 1.0},
    },
    "fedasync": {"aggregation": {"strategy": "fedasync", "mixing": 0.6, "history": 1000}},
}
CODECS = ("float32", "int8")
MODELS = ("whole", "fragments", "lora")
"""Made up, and moving as a whole; made up, in fragments; a language model's LoRA, trained, in fragments."""
_DEADLINE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. Each of `clients` clients publishes `updates` updates of a model of `numel` elements.

    The model is one of MODELS; the adapters of a language model have a size of their own.
    """

    seed: int
    scenario: str = "fedbuff-sgd"
    codec: str = "float32"
    numel: int = 700
    clients: int = 2
    updates: int = 6
    partitions: int = 1
    full_every: int = 3
    ends: bool = False
    points: tuple[Point, ...] = ()
    model: str = "whole"
    fragments: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"client-{number}" for number in range(self.clients))

    @property
    def standby(self) -> bool:
        """Whether a second aggregator waits."""
        return any(point.fault is Fault.HANG for point in self.points)

    @property
    def total(self) -> int:
        """Updates that must be counted."""
        return self.clients * self.updates

    @property
    def versions(self) -> int | None:
        """The number of the last version; None where a deadline makes them."""
        return versions_of(self.scenario, self.total) if self.fragments == 1 else None

    @property
    def trains(self) -> bool:
        """Whether the clients train a language model."""
        return self.model == "lora"

    def base_model(self, folder: Path) -> Path:
        """Where that lies, in the folder of the run."""
        return folder / "base-model"

    def texts(self, folder: Path) -> Path:
        """Where the texts lie that it is trained on."""
        return folder / "texts.jsonl"

    def settings(self, federation: str, servers: str | None, folder: Path = Path()) -> Settings:
        """The settings of a run that keeps its files in `folder`.

        Staleness is never too high here, so that nothing is refused for it: not even of the updates that come while
        the aggregator is cut off, each of which makes a version of its own with fedasync.
        """
        given: dict[str, dict[str, Any]] = {
            "federation": {"name": federation},
            "broker": {
                "bootstrap_servers": servers,
                "connect_timeout_seconds": 5.0,
                "request_timeout_seconds": 6.0,
                "transaction_timeout_seconds": 20.0,
            },
            "topics": {"updates_partitions": self.partitions},
            "wire": {"chunk_bytes": 1024},
            "codec": {"name": self.codec},
            "staleness": {"kind": "polynomial", "maximum": 100_000},
            "aggregation": {"deadline_seconds": 600.0},
            "aggregator": {"beat_seconds": 0.15, "takeover_seconds": 0.8 if servers else 0.3},
            "versions": {"full_every": self.full_every},
            "runtime": {"workers": 1, "torch_threads": 1},
        }
        for section, fields in SCENARIOS[self.scenario].items():
            given[section] = given.get(section, {}) | dict(fields)
        if self.fragments > 1:
            # Which fragment an update is of depends on when it comes, so that no number of them fills all buffers.
            seconds = min(given["aggregation"]["deadline_seconds"], _DEADLINE_SECONDS)
            given["aggregation"] |= {"fragments": self.fragments, "deadline_seconds": seconds}
        if self.trains:
            options = {"model": str(self.base_model(folder)), "sequence": 16, "lora": {"rank": 2}}
            given["task"] = {"entry": "llm", "options": options}
            given["client"] = {"data": str(self.texts(folder)), "batch_size": 4, "lr": 0.01}
        if self.ends:
            given["stop"] = {"max_versions": self.versions}
        return load(given)


def versions_of(scenario: str, updates: int) -> int | None:
    """How many versions this many updates make, when they fill every buffer."""
    rule = SCENARIOS[scenario]["aggregation"]
    if "deadline_seconds" in rule:
        return None
    size = rule.get("buffer_size", 1)
    if updates % size:
        raise ValueError(f"{updates} updates leave a buffer of {size} unfinished")
    return int(updates // size)


_WEIGHTS = {
    Fault.KILL_BEFORE: 4,
    Fault.KILL_IN: 8,
    Fault.KILL_AFTER: 4,
    Fault.HANG: 3,
    Fault.KILL_CLIENT: 6,
    Fault.KILL_CLIENT_AFTER_SEND: 5,
    Fault.RESTART_BROKER: 1,  # it takes long, and strikes all that run at the time
    Fault.CUT_NETWORK: 3,
    Fault.DUPLICATE: 3,
    Fault.REORDER: 2,
    Fault.DELAY: 2,
}


def plan_of(seed: int, model: str | None = None) -> Plan:
    """The plan of a seed: a scenario, one to three faults and, where that is not given, one of MODELS."""
    rng = random.Random(seed)  # noqa: S311
    scenario = rng.choice(list(SCENARIOS))
    clients = rng.choice([2, 3])
    bare = Plan(
        seed,
        scenario=scenario,
        codec=rng.choice(CODECS),
        numel=rng.choice([50, 700, 5000]),
        clients=clients,
        updates=6 if clients == 3 else rng.choice([6, 9, 12]),
        partitions=rng.choice([1, 1, 2]),
        full_every=rng.choice([1, 3, 3, 16]),
    )
    faults = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=rng.choice([1, 2, 2, 3]))
    points: list[Point] = []
    for fault in faults:
        if fault in OF_THE_NET | {Fault.HANG} and any(point.fault is fault for point in points):
            continue
        points.append(_point(rng, fault, bare, points))
    plan = replace(bare, ends=bare.versions is not None and rng.random() < 0.4, points=tuple(points))
    drawn = rng.choice([*MODELS, "whole"])
    return plan if (model or drawn) == "whole" else _in_fragments(rng, plan, model or drawn)


def _in_fragments(rng: random.Random, plan: Plan, model: str) -> Plan:
    cuttable = [name for name in SCENARIOS if name != "fedasync"]  # which mixes whole models
    return replace(
        plan,
        model=model,
        scenario=plan.scenario if plan.scenario in cuttable else rng.choice(cuttable),
        codec=rng.choice([*CODECS, "topk2"]),
        fragments=rng.choice([2, 3, 4]),
        ends=False,
    )


def _point(rng: random.Random, fault: Fault, plan: Plan, others: list[Point]) -> Point:
    versions = plan.versions or plan.total // 3
    if fault in OF_AGGREGATOR:
        # Two may strike one after the other, so each comes in the first half.
        extra = rng.choice([0, 0, 1, 2, 3, -2, -5, -15, -30]) if fault is Fault.KILL_IN else rng.choice([0, 1, 2])
        return Point(fault, AGGREGATOR, rng.randint(1, max(versions // 2, 1)), extra)
    if fault is Fault.RESTART_BROKER:
        return Point(fault, BROKER, rng.randint(0, max(versions - 2, 0)))
    if fault is Fault.CUT_NETWORK:
        role = rng.choice([AGGREGATOR, *plan.names])
        return Point(fault, role, rng.randint(0, max(versions - 2, 0)), rng.choice([50, 400, 1500, 2500]))
    # What the harness holds back dies with the process that holds it, so nothing kills that one.
    held = {Fault.REORDER, Fault.DELAY}
    taken = {(point.role, point.at) for point in others}
    clients = [
        name
        for name in plan.names
        if not any(
            point.role == name and (fault in held) != (point.fault in held) and {fault, point.fault} & KILLS
            for point in others
        )
    ]
    if not clients:
        return Point(Fault.DUPLICATE, plan.names[0], plan.updates, 0)  # never reached: nothing happens
    gap = {Fault.REORDER: 1, Fault.DELAY: rng.choice([2, 3, 4])}.get(fault, rng.choice([0, 1, 2, 3, 7]))
    last = plan.updates - 1 - (gap if fault in held else 0)
    name = rng.choice(clients)
    free = [at for at in range(last + 1) if (name, at) not in taken]
    return Point(fault, name, rng.choice(free), gap)
