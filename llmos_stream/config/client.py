"""What is learnt, and how a client trains and encodes its updates."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llmos_stream.config.base import (
    NAME_PATTERN,
    Count,
    FilePath,
    Fraction,
    Positive,
    Section,
    Source,
    Whole,
    power_of_two,
)
from llmos_stream.config.rules import NO_OPTIONS, CodecName, Options


def _local_steps(value: object) -> object:
    try:
        if value is None or value == "auto" or (not isinstance(value, bool | float) and int(str(value)) >= 1):
            return value
    except ValueError:
        pass
    raise ValueError("a number of steps, 1 or more, or auto")


class TaskSettings(Section):
    entry: str = "digits"
    """What is learnt: `digits`, `blobs`, `llm`, `noop:N`, or `package.module:callable` of your own, which makes a
    Task."""
    options: Options = NO_OPTIONS
    """What a task of your own takes: name=value,name=value, or a table [task.options] in a settings file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the split and the batches."""
    shards: Count = 8
    """Into how many unequal shards the task's data is split."""
    alpha: Positive = 0.3
    """Dirichlet concentration of the labels over the shards; a smaller value skews them more."""
    share: str = "all"
    """Tensors that are shared: all, trainable, adapters, no-norm, or a glob such as `encoder.*`."""


class ClientSettings(Section):
    id: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of this client, unique in the federation. Unset: this host's name and the shard."""
    shard: Whole = 0
    """Which shard of the task's data this client holds."""
    data: Source | None = Field(default=None, repr=False)
    """Where this client's own data are, for a task of your own: a path, a URI or a DSN. A password in it is not shown,
    but process lists show flags: set it by the variable then."""
    state_dir: FilePath | None = None
    """Folder for the sequence, the unsent update, the residual and the carry. Unset: one of its own in the user's state
    folder."""
    evaluate_every: Whole = 1
    """Measure each n-th version on this site's own validation data, where the task has some, and tell the federation.
    0: never."""
    train_alone: bool = False
    """Train a second model on this site's data alone, from the first version on and for as many steps, and tell what it
    reaches on the validation data: what the federation is worth to the site. Doubles the training."""
    share_local: bool = False
    """Let other sites that do so too measure what this site's training makes of a version (with train_alone: its own
    model), and measure theirs. Each sees the other's model as a whole: for sites that trust each other."""
    share_local_every: Count = 10
    """Share it at each n-th version, and measure that of each other site at most that often."""
    epochs: Count = 1
    """Local epochs between two updates."""
    head_epochs: Whole = 0
    """FedRep: first train what is this site's own (task.share) alone for so many epochs, then what is shared alone.
    0: both at once."""
    batch_size: Count = 32
    """Examples in a batch."""
    lr: Positive = 0.05
    """Learning rate of the task's local optimiser."""
    local_steps: Annotated[Literal["auto"] | Count | None, BeforeValidator(_local_steps)] = None
    """Optimiser steps between two updates, in place of epochs. auto: those of the epochs for the fastest client, fewer
    for one that is slower, in proportion (DyLU). Unset: whole epochs."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """FedProx: add mu / 2 times the squared distance from the version to each batch's loss. 0: nothing is added."""
    max_grad_norm: Positive | None = None
    """Scale the gradients of a batch down to this L2 norm where they are longer. Unset: they are as they are."""
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Speed factor: 0.1 behaves as a device ten times slower."""
    min_train_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Training takes at least this long at speed 1, to imitate devices that are slower than this machine. With
    local_steps auto, fewer steps take less."""
    wait_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long to wait for a newer version before training on the same one again; the wait doubles while none comes."""
    pace_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Leave at least this long between two updates; the aggregator may ask for longer."""
    join_delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Join this long after the start."""
    overlap: bool = False
    """Train on while an update is being sent, for slow links; one is under way at most. What is trained meanwhile is on
    weights without it, and so a version staler, or more."""
    max_updates: Count | None = None
    """Leave after this many updates."""


class CodecSettings(Section):
    name: CodecName = "int8"
    """Codec of the updates; or one of a package that the aggregator has too."""
    options: Options = NO_OPTIONS
    """What a package's codec takes: name=value,name=value."""
    block: Annotated[int, Field(ge=32, le=1024), AfterValidator(power_of_two)] = 512
    """Elements that share a scale (int8, int4); a power of two."""
    rounding: Literal["stochastic", "nearest"] | None = None
    """Rounding of int8, int4 and the values of topk. nearest: half the error, but biased. stochastic: no bias. Unset:
    nearest with error_feedback, which corrects the bias, else stochastic."""
    fraction: Fraction = 0.1
    """Share of the elements that topk keeps."""
    chunk: Annotated[int, Field(ge=64, le=65536), AfterValidator(power_of_two)] = 4096
    """Elements of a chunk, of which topk2 keeps the largest; a power of two."""
    keep: Count = 64
    """How many elements of a chunk topk2 keeps, each as a sign and one of the chunk's two magnitudes."""
    error_feedback: bool = True
    """Add to each update what the lossy codec left out of the last one."""
    feedback_decay: Fraction = 1.0
    """Times this is what the last one left out added. Below 1 it fades: what is sent late was learnt on old weights."""
    zstd_level: Annotated[int, Field(ge=1, le=19)] = 1
    """zstd level of updates."""

    @model_validator(mode="after")
    def _keeps_no_more_than_there_is(self) -> Self:
        if self.keep > self.chunk:
            raise ValueError(f"keep: {self.keep} is more than a chunk has ({self.chunk})")
        return self


class EvaluatorSettings(Section):
    batch_size: Count = 512
    """Examples in an evaluation batch."""
    every: Count = 1
    """Evaluate every n-th version."""
