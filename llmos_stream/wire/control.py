"""What `<f>.control` holds: its keys, and their values as JSON. The newest value of a key counts (it is compacted).

The aggregator writes, in the transaction of a version (latest, state, sequences), or of the end of the run or of its
going on (run):

latest      {"version": int, "partition": int, "offset": int, "full": null or such an object}
            where the newest version begins in `<f>.models`, and the full version that it stands on if it is a delta.
            Read by all who need weights: clients, evaluators, inference, the archiver, the next aggregator
run         {"state": "finished", "reason": str, "detail": str, "version": int, "stop": {...}}
            why the run has ended, with which version, and under which stop settings (left out by releases that could
            not go on). Read by every role
            {"state": "running", "version": int}
            the run goes on from this version, although it had ended. Releases that do not know it go by the end before
state       {"version": int, "started_ms": int, "events": int, "evaluations": int, "stop": {...},
            "snapshots": {str: int}, "bases": null or int, "floor": int, "intake": {...}, "limits": {str: [float, int]}}
            what an aggregator must know beside the newest version to go on from it: see `Checkpoint`.
            Read by the next aggregator; of `events`, by all who read evaluations
sequences/CLIENT  [highest, version, words...]
            which of a client's updates were folded: see `core.SequenceWindow`; a tombstone once any repeat of it
            would be too stale. Read by the next aggregator

The aggregator writes at its takeover (with a higher term), at every beat, and when it leaves in order:

aggregator  {"term": int, "instance": str, "left": bool, "pace_seconds": float, "lag": int,
            "steps_per_second": float}
            who leads; the last is left out where it is not known.
            Read by standbys, and by clients for their pace and their local steps

The aggregator writes when it takes over, where its settings are others than what is there:

participation  {"clients": [str, ...], "at_once": int or null, "min_examples": int}
            who may take part: ids and globs, how many at once, with how many examples. Read by clients and `clients`

Operators write (`versions promote` and `rollback`, `pause` and `resume`, `finish`, the live page):

promoted    {"version": int, "history": [int, ...], "time_ms": int}
            the version to serve, and those promoted before it, newest last. Read by inference and the archiver
paused      {"paused": bool, "time_ms": int}
            whether training should rest. Read by clients and the aggregator
clients/ID  {"forbidden": bool, "settings": {str: str, number or bool}, "reason": str, "time_ms": int}
            what is wanted of one client: that it stays away, or works under other settings (`config.orders`), and why.
            Read by that client and the aggregator; a tombstone takes it back
finish      {"time_ms": int}
            the run should end. The aggregator ends it; done with once there is a newer record under `run`

A reader that finds another value under a key passes it over, and keeps what it knew: integers are from 0 to 2^63 - 1,
terms at most MOST_TAKEOVERS above the last one heard, and `<f>.models` has one partition.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from llmos_stream.types import ClientOrder, ParticipationRules
from llmos_stream.wire.fields import count, integer

LATEST = b"latest"
RUN = b"run"
AGGREGATOR = b"aggregator"
PROMOTED = b"promoted"
PAUSED = b"paused"
FINISH = b"finish"
STATE = b"state"
SEQUENCES = b"sequences/"
PARTICIPATION = b"participation"
CLIENTS = b"clients/"

MOST_TAKEOVERS = 1 << 20
"""A term counts takeovers, a second or more each: none is this far above the last one that was heard."""
_REMEMBERED = 32
"""Promotions that can be taken back."""
_MOST_WORD = 2**64 - 1
_MOST_SNAPSHOTS = 64
_TEXT_CHARACTERS = 1000
_MOST_PATTERNS = 1000
_MOST_ORDERED = 64
_NAME_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a version begins in `<f>.models`; `full` is the full version it stands on, where it is a delta."""

    version: int
    partition: int
    offset: int
    full: "Pointer | None" = None

    @property
    def beginning(self) -> "Pointer":
        """Where to read from to know the version's weights: all deltas since then are needed too."""
        return self.full or self


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Why and with which version the run has ended, and under which stop settings, where that is known."""

    reason: str
    detail: str
    version: int
    stop: Mapping[str, object] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Leader:
    """Who aggregates. Terms rise with every takeover; `left` when it handed over in order.

    `pace_seconds` is how long every client should leave from one update to its next, `lag` how many records of
    its source the leader has still to read, `steps_per_second` how fast the fastest client trains, 0 where that is not
    known.
    """

    term: int
    instance: str
    left: bool = False
    pace_seconds: float = 0.0
    lag: int = 0
    steps_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Promotion:
    """The version that an operator wants served; `history` are those before it, newest last, to go back to."""

    version: int
    history: tuple[int, ...]
    time_ms: int

    def followed_by(self, version: int, time_ms: int) -> "Promotion":
        """`version` in its place."""
        return Promotion(version, (*self.history, self.version)[-_REMEMBERED:], time_ms)

    def rolled_back(self, time_ms: int) -> "Promotion | None":
        """The one before in its place; None where there was none."""
        return Promotion(self.history[-1], self.history[:-1], time_ms) if self.history else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The aggregator's own state at `version`, committed with it.

    snapshots: each moment of the server optimiser, and the residual of a delta version, and where its message
    begins in `<f>.snapshots`.
    bases: where the full version begins in `<f>.models` that the oldest one which an update may still name
    stands on, where the strategy needs the weights of past versions.
    stop: what the stop rule learnt (`StopRule.dump`). evaluations: the next offset of `<f>.evaluations` to look at.
    events: evaluations in `<f>.events` count before this offset, as an older release wrote them; in its own logs, where
    `evaluations` is None, they all do.
    started_ms: when the run started, in milliseconds since the epoch.
    floor: see `core.State`. limits: see `core.limits`.
    intake: what the source of the updates wants back after a restart.
    """

    version: int
    started_ms: int
    events: int = 0
    evaluations: int | None = 0
    stop: Mapping[str, object] = field(default_factory=dict)
    snapshots: Mapping[str, int] = field(default_factory=dict)
    bases: int | None = None
    floor: int = 0
    intake: Mapping[str, object] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)


def dump_setting(setting: Pointer | Leader | Promotion | Checkpoint) -> bytes:
    """The value of `latest`, `aggregator`, `promoted` or `state`."""
    if isinstance(setting, Leader) and not setting.steps_per_second:
        told = asdict(setting)
        del told["steps_per_second"]
        return orjson.dumps(told)
    return orjson.dumps(setting)


def load_latest(value: Mapping[str, Any]) -> Pointer:
    """The pointer in a value of `latest`."""
    full = value.get("full")
    at = _place(value)
    return at if full is None else replace(at, full=_place(full))


def _place(value: Mapping[str, Any]) -> Pointer:
    return Pointer(count(value, "version"), integer(value, "partition", 0, 0), count(value, "offset"))


def dump_run_end(end: RunEnd) -> bytes:
    """The value of `run` once the run has ended."""
    stop = {} if end.stop is None else {"stop": dict(end.stop)}
    told = {"reason": end.reason, "detail": end.detail, "version": end.version}
    return orjson.dumps({"state": "finished", **told, **stop})


def dump_running(version: int) -> bytes:
    """The value of `run` once a run that had ended goes on from `version`."""
    return orjson.dumps({"state": "running", "version": version})


def load_run(value: Mapping[str, Any]) -> RunEnd | None:
    """The end in a value of `run`; None where the run goes on. Raises ValueError for a state that nobody knows."""
    match value["state"]:
        case "finished":
            stop = dict(value["stop"]) if "stop" in value else None
            return RunEnd(_text(value, "reason"), _text(value, "detail"), count(value, "version"), stop)
        case "running":
            count(value, "version")
            return None
        case state:
            raise ValueError(f"state {str(state)[:20]}")


def dump_finish(time_ms: int) -> bytes:
    """The value of `finish`."""
    return orjson.dumps({"time_ms": time_ms})


def load_leader(value: Mapping[str, Any]) -> Leader:
    """The leader in a value of `aggregator`."""
    return Leader(
        count(value, "term"),
        _text(value, "instance"),
        bool(value["left"]),
        _number(value, "pace_seconds"),
        count(value, "lag") if "lag" in value else 0,
        _number(value, "steps_per_second"),
    )


def _number(value: Mapping[str, Any], key: str) -> float:
    """A finite number; 0 where there is none."""
    found = value.get(key, 0.0)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{key} is no number")
    return float(found) if math.isfinite(found) else 0.0


def load_promotion(value: Mapping[str, Any]) -> Promotion:
    """The promotion in a value of `promoted`."""
    history = tuple(count({"version": version}, "version") for version in value["history"][-_REMEMBERED:])
    return Promotion(count(value, "version"), history, count(value, "time_ms"))


def dump_paused(paused: bool, time_ms: int) -> bytes:
    """The value of `paused`."""
    return orjson.dumps({"paused": paused, "time_ms": time_ms})


def load_paused(value: Mapping[str, Any]) -> bool:
    """Whether a value of `paused` pauses training."""
    if not isinstance(value["paused"], bool):
        raise ValueError("paused is neither true nor false")
    return value["paused"]


def load_checkpoint(value: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in a value of `state`."""
    snapshots = dict(value["snapshots"])
    if len(snapshots) > _MOST_SNAPSHOTS:
        raise ValueError(f"{len(snapshots)} snapshots of one version")
    return Checkpoint(
        version=count(value, "version"),
        started_ms=count(value, "started_ms"),
        events=count(value, "events"),
        evaluations=count(value, "evaluations") if value.get("evaluations") is not None else None,
        stop=dict(value["stop"]),
        snapshots={name: count(snapshots, name) for name in snapshots},
        bases=None if value["bases"] is None else count(value, "bases"),
        floor=count(value, "floor") if "floor" in value else 0,
        intake=dict(value["intake"]),
        limits=dict(value.get("limits", {})),
    )


def dump_participation(rules: ParticipationRules) -> bytes:
    """The value of `participation`."""
    return orjson.dumps(rules)


def load_participation(value: Mapping[str, Any]) -> ParticipationRules:
    """The rules in a value of `participation`."""
    clients, at_once = value["clients"], value.get("at_once")
    if not isinstance(clients, list) or len(clients) > _MOST_PATTERNS:
        raise ValueError("clients is no list of patterns")
    patterns = tuple(_text({"pattern": pattern}, "pattern")[:_NAME_CHARACTERS] for pattern in clients)
    return ParticipationRules(
        patterns,
        None if at_once is None else integer(value, "at_once", 1),
        integer(value, "min_examples", 1) if "min_examples" in value else 1,
    )


def client_key(client_id: str) -> bytes:
    """The key of what an operator wants of a client."""
    return CLIENTS + client_id.encode()


def dump_order(order: ClientOrder | None) -> bytes | None:
    """The value of `clients/ID`, or the tombstone that takes it back."""
    return None if order is None else orjson.dumps(order)


def load_order(value: Mapping[str, Any]) -> ClientOrder:
    """The order in a value of `clients/ID`. Whether its settings make sense is for the client to say."""
    if not isinstance(value["forbidden"], bool):
        raise ValueError("forbidden is neither true nor false")
    settings = {name: value["settings"][name] for name in value.get("settings", {})}
    if len(settings) > _MOST_ORDERED or not all(isinstance(one, str | int | float) for one in settings.values()):
        raise ValueError("settings are no names with values")
    reason = _text(value, "reason") if "reason" in value else ""
    return ClientOrder(value["forbidden"], settings, reason, count(value, "time_ms"))


def sequences_key(client_id: str) -> bytes:
    """The key of a client's window."""
    return SEQUENCES + client_id.encode()


def dump_sequences(window: Sequence[int] | None) -> bytes | None:
    """A client's window (see `core.SequenceWindow.dump`), or the tombstone of one that is forgotten."""
    return None if window is None else orjson.dumps(list(window))


def load_sequences(value: Sequence[Any]) -> list[int]:
    """A client's window; whether it is one is for `core.SequenceWindow.load` to say."""
    return [integer({"sequences": number}, "sequences", 0, _MOST_WORD) for number in value]


def _text(value: Mapping[str, Any], key: str) -> str:
    """Printable, so that it cannot steer the terminal that it is shown on."""
    found = str(value[key])[:_TEXT_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in found)
