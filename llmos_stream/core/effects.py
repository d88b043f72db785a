"""What a step of the aggregation asks the outside world to do. Plain records, in the order they happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llmos_stream.errors import Reason
from llmos_stream.types import Contribution, UpdateHead


@dataclass(frozen=True, slots=True)
class Folded:
    """An update was taken into the buffer. Its offset is committed with the version it becomes part of."""

    contribution: Contribution


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An update with this identity was folded before; this one is dropped."""

    client_id: str
    sequence: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An update must not be folded. It goes to quarantine, with its head."""

    reason: Reason
    detail: str
    head: UpdateHead
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class NewVersion:
    """A version to publish.

    `weights` is a flat vector on the CPU that no later step writes to, so it can be encoded and sent while the
    aggregation goes on. It is the receiver's until it gives back what readers will have (see `state.release`), which
    may be the same tensor, written over; after that the state reads it.

    `sequences` is what must be remembered with the version so that a repeat is known after a restart:
    the window of each client in the manifest (see `State.window_of`), and None for a client
    that is forgotten. `moments` are the server optimiser's (see `Pipeline.state_tensors`): the live tensors
    (copies, where a GPU folds), to be written out before the next step. `limits` are those that
    its updates were held to (see `limits`). `buffer_size` is the number of updates at which it was to be made, where
    that adapts to who takes part. `range` says which elements have moved, where those are one fragment's.
    """

    number: int
    parent: int | None
    weights: Tensor
    manifest: tuple[Contribution, ...]
    sequences: Mapping[str, Sequence[int] | None] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    buffer_size: int | None = None
    range: tuple[int, int] | None = None


Effect = Folded | Duplicate | Refused | NewVersion
