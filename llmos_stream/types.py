"""Frozen records that several rooms share. Plain data: no tensors, no I/O, no behaviour beyond names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum, unique
from typing import NamedTuple

Number = int | float

LOCAL_STEPS = "local_steps"
"""The metric of an update that says of how many steps it is."""
TOKENS = "tokens"
"""The metric of an update that says on how many tokens it was trained, where the task counts tokens."""


@unique
class CodecId(IntEnum):
    """Wire ids of the codecs. Closed: an id is never reused for another meaning."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT8 = 4
    INT4 = 5
    TOPK = 6
    TOPK2 = 7

    @property
    def label(self) -> str:
        """The codec's name in settings, metrics and reports, such as `int8`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which codec wrote a payload, and with which parameters (see `codec.table`)."""

    id: int
    params: Mapping[str, Number] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The codec's label; an id from outside may have none."""
        try:
            return CodecId(self.id).label
        except ValueError:
            return f"unknown ({self.id})"


@unique
class TensorKind(StrEnum):
    """Whether a tensor is trained, or measured in the course of training (batch-norm statistics, observers, masks).

    A parameter travels as a delta, through a codec that may lose something, and the server optimiser moves it. A buffer
    travels as its value, at full precision, and is averaged.
    """

    PARAMETER = "parameter"
    BUFFER = "buffer"


class TensorSpec(NamedTuple):
    """One shared tensor: its name, shape, torch dtype name (such as `float32`) and kind."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: TensorKind = TensorKind.PARAMETER

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def row(self) -> list[object]:
        """It as lists and strings. A parameter has no fourth item, as in releases that knew no other kind."""
        row: list[object] = [self.name, list(self.shape), self.dtype]
        return [*row, self.kind.value] if self.kind is TensorKind.BUFFER else row


class Fragment(NamedTuple):
    """A stretch of the flat vector, of whole tensors, that travels and moves by itself: elements `begin` to `end`.

    `digest` is that of its tensors as a layout of their own, `buffers` are those at its end.
    """

    begin: int
    end: int
    digest: bytes
    buffers: tuple[TensorSpec, ...] = ()

    @property
    def range(self) -> tuple[int, int]:
        """Its first element, and the one after its last."""
        return self.begin, self.end

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return self.end - self.begin

    @property
    def buffer_elements(self) -> int:
        """How many of them are buffers'."""
        return sum(spec.numel for spec in self.buffers)

    @property
    def parameters(self) -> int:
        """How many of them are parameters'."""
        return self.numel - self.buffer_elements


@dataclass(frozen=True, slots=True)
class UpdateHead:
    """What an update says about its payload. Identity is `(client_id, sequence)`.

    One of a fragment names its `range` in the flat vector, and the fragment's own layout.
    """

    client_id: str
    sequence: int
    base_version: int
    num_examples: int
    layout_digest: bytes
    codec: CodecSpec
    payload_size: int
    payload_digest: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)
    range: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One update folded into a version, as the manifest records it.

    `weight` is what the strategy gave it (`n_i * s(tau_i)` in a mean over examples; 0 where it was left out); `clip` is
    the factor that brought its L2 norm within the limit (1.0 where it was within).
    """

    client_id: str
    sequence: int
    partition: int
    offset: int
    num_examples: int
    staleness: int
    weight: float
    clip: float
    payload_digest: bytes
    steps: float | None = None
    """Of how many local steps it counts, where the strategy looks at that."""


@unique
class VersionKind(StrEnum):
    """Whether a version's payload is the whole model, a delta on its parent, or a delta on one range of its parent."""

    FULL = "full"
    DELTA = "delta"
    FRAGMENT = "fragment"


@dataclass(frozen=True, slots=True)
class VersionHead:
    """A global version. `tensors` is its layout, present where `kind` is full.

    `range` says which elements moved, where those were not all: in a fragment always, and in a full one that was made
    of a fragment's updates. Its other numbers are those of the whole model.

    `weights_digest` is SHA-256 over the resulting float32 weights in layout order, little endian.
    `rule` is the aggregation settings in force and `build` the torch build and CPU type, so that a
    replay elsewhere can say why it differs.
    """

    number: int
    parent: int | None
    kind: VersionKind
    layout_digest: bytes
    codec: CodecSpec
    payload_size: int
    payload_digest: bytes
    weights_digest: bytes
    time_ms: int
    manifest: tuple[Contribution, ...] = ()
    tensors: tuple[TensorSpec, ...] | None = None
    rule: Mapping[str, object] = field(default_factory=dict)
    build: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] | None = None
    """Further names of tied tensors, and under which name each is in `tensors`; where there are any."""
    parent_digest: bytes | None = None
    """That of the parent's prelude (see `wire.head_digest`); zeros where there is no parent. None: from before these
    digests came."""
    range: tuple[int, int] | None = None


def elements_in(head: UpdateHead | VersionHead, numel: int) -> int:
    """How many elements of a model of `numel` an update carries, or a version has moved."""
    return numel if head.range is None else head.range[1] - head.range[0]


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """One flat vector of the aggregator's own state at `version`, such as a moment of the server optimiser.

    The payload holds as many elements as the layout's parameters; `tensor` says which vector it is.
    """

    version: int
    tensor: str
    layout_digest: bytes
    codec: CodecSpec
    payload_size: int
    payload_digest: bytes


@dataclass(frozen=True, slots=True)
class LocalModelHead:
    """All shared weights of a model that a client has trained on its own data alone, since version `since`.

    `version` is the newest one that it had by then.
    """

    client_id: str
    version: int
    since: int
    layout_digest: bytes
    codec: CodecSpec
    payload_size: int
    payload_digest: bytes


Head = UpdateHead | VersionHead | SnapshotHead | LocalModelHead
Part = bytes | memoryview
"""A piece of a payload. Payloads travel as sequences of parts, so that none is ever joined."""


@dataclass(frozen=True, slots=True)
class ParticipationRules:
    """Who may take part: clients by id or glob, how many at once (None: all), and with how many examples an update."""

    clients: tuple[str, ...] = ("*",)
    at_once: int | None = None
    min_examples: int = 1


@dataclass(frozen=True, slots=True)
class ClientOrder:
    """What an operator wants of one client: that it stays away, or that it works under other settings, and why."""

    forbidden: bool = False
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """By full name, such as `codec.name`: see `config.orders`."""
    reason: str = ""
    time_ms: int = 0


@unique
class TopicKind(StrEnum):
    """The topics of a federation: the names behind its prefix."""

    UPDATES = "updates"
    MODELS = "models"
    EVENTS = "events"
    EVALUATIONS = "evaluations"
    CONTROL = "control"
    SNAPSHOTS = "snapshots"
    QUARANTINE = "quarantine"
    LOCALS = "locals"


@unique
class EventKind(StrEnum):
    """The kinds of events. Closed, so that the monitor can know them all.

    Evaluations lie in `<f>.evaluations`, all others in `<f>.events`.
    """

    CLIENT_JOINED = "client_joined"
    CLIENT_LEFT = "client_left"
    UPDATE_SENT = "update_sent"
    UPDATE_FOLDED = "update_folded"
    UPDATE_DUPLICATE = "update_duplicate"
    UPDATE_REJECTED = "update_rejected"
    VERSION_PUBLISHED = "version_published"
    EVALUATION = "evaluation"
    MODEL_COLLAPSED = "model_collapsed"
    RUN_FINISHED = "run_finished"
    RUN_RESUMED = "run_resumed"


@unique
class Role(StrEnum):
    """Who writes events."""

    AGGREGATOR = "aggregator"
    CLIENT = "client"
    EVALUATOR = "evaluator"


@dataclass(frozen=True, slots=True)
class Event:
    """One record of `<f>.events` or `<f>.evaluations`: who saw what, when (milliseconds since the epoch)."""

    kind: EventKind
    role: str
    time_ms: int
    data: Mapping[str, object] = field(default_factory=dict)
