"""What makes a version of updates, how it is written, and when a run ends."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llmos_stream.config.base import (
    MOST,
    NAME_PATTERN,
    Count,
    FilePath,
    Fraction,
    Positive,
    Section,
    Whole,
    power_of_two,
)
from llmos_stream.config.rules import (
    NO_OPTIONS,
    Options,
    ServerOptimizerName,
    StalenessName,
    StopRuleName,
    StrategyName,
)

MOST_FRAGMENTS = 32
"""So many snapshots fit beside the moments (see `wire.control.Checkpoint`)."""
_VERSION_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"(:\d{1,18})?$")


def _version_name(text: str) -> str:
    if not _VERSION_NAME.match(text):
        raise ValueError("a version of a federation is NAME or NAME:VERSION, as in ward:12")
    return text


class StalenessSettings(Section):
    kind: StalenessName = "polynomial"
    """s(tau): 1, (1 + tau)^-a, or 1 up to b and 1 / (a (tau - b) + 1) beyond; or one of your own."""
    a: Positive = 0.5
    """How fast the weight falls (polynomial, hinge)."""
    b: Annotated[float, Field(ge=0)] = 4.0
    """Staleness up to which the hinge gives full weight."""
    maximum: Whole = 1_000_000
    """An update staler than this is refused. fedasync refuses what is staler than its history, too."""
    options: Options = NO_OPTIONS
    """What a function of your own takes: name=value,name=value."""


class AggregationSettings(Section):
    strategy: StrategyName = "fedbuff"
    """fedbuff: one version for each buffer of updates. fedavg: in rounds, of updates on the newest version alone.
    fedasync: mix every update in on arrival. fednova: as fedbuff, for clients of unequal numbers of local steps. The
    others hold a buffer of updates and stand a few hostile ones. Or one of your own (see `llmos_stream.strategy`)."""
    options: Options = NO_OPTIONS
    """What the strategy takes: name=value,name=value. fedavg: late; trimmed_mean: beta; krum: f; multi_krum: f, m;
    norm_bound: multiple."""
    buffer_size: Annotated[int, Field(ge=1, le=2048)] | None = None
    """Updates that make a version (all but fedasync). Unset: as many as clients take part, at most 4; 4 where a few
    hostile ones are stood. fedavg must be told."""
    history: Count = 20
    """Past versions that fedasync holds, each as large as the model: an update on an older one is refused."""
    deadline_seconds: Positive = 10.0
    """A buffer that is not empty becomes a version this long after its first update. A round of fedavg does so only
    where there is a quorum, and that has come."""
    quorum: Count | None = None
    """Once so many updates have come, others are waited for no longer than grace_seconds. At most buffer_size, which it
    needs."""
    grace_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long after the quorum a version is made, unless buffer_size or the deadline comes first."""
    mixing: Fraction = 0.6
    """alpha of fedasync."""
    clip_norm: Positive | None = None
    """L2 norm that no delta may exceed; a longer one is scaled down. Unset: clip_multiple alone decides."""
    clip_multiple: Annotated[float, Field(ge=0)] = 10.0
    """A delta longer than this times the median of the clients' last ones is scaled down to it. 0: none is."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A client's examples count for no more than gives it this share of a version whose others are of median size, but
    for 3 times the median at least. 1: for all that it claims."""
    max_num_examples: Annotated[int, Field(ge=1, le=2**64)] = 1_000_000_000  # a head can say up to 2^64 - 1
    """An update that claims more examples than this is refused."""
    one_of_a_client: bool | None = None
    """Take one update of each client for a version, and refuse a second. Unset: yes where a few hostile clients are
    stood, so that none has several votes; else no. fedavg always does."""
    fragments: Annotated[int, Field(ge=1, le=MOST_FRAGMENTS)] = 1
    """Into how many ranges of whole tensors the model is cut. An update carries one of them, a version moves one, and
    both are smaller by that. Above 1 it needs a buffer_size, and a strategy that counts no rounds and keeps no
    history."""
    max_step: Positive | None = None
    """A version that would move the parameters by more than this part of their L2 norm is not published, and the
    updates that it was made of are refused. Unset: no limit."""

    @model_validator(mode="after")
    def _buffer_size_is_enough(self) -> Self:
        if self.strategy == "fedavg" and self.buffer_size is None:
            raise ValueError("buffer_size: name how many clients' updates make a round of fedavg")
        if self.fragments > 1 and self.buffer_size is None:
            raise ValueError("buffer_size: name how many updates of a fragment make a version")
        if self.quorum is not None and self.quorum > (self.buffer_size or 0):
            raise ValueError(f"quorum: {self.quorum} is more than buffer_size ({self.buffer_size or 'unset'})")
        return self


def fedavg_of(clients: int) -> AggregationSettings:
    """FedAvg (McMahan et al. 2017): a round is an update of each of so many clients, weighed by its examples alone."""
    return AggregationSettings(strategy="fedavg", buffer_size=clients, clip_multiple=0, max_share=1)


class ServerOptimizerSettings(Section):
    name: ServerOptimizerName = "sgd"
    """How the server applies the pseudo-gradient (FedOpt); sgd with lr 1 is FedAvg. fadas and delayed_nesterov are made
    for updates that come late. Or one of your own."""
    lr: Positive = 1.0
    """Server learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of sgd and delayed_nesterov."""
    nesterov: bool = False
    """Nesterov's momentum for sgd, as in torch: the step looks ahead of the moving sum."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """First moment's decay (adam, yogi, adagrad, fadas)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Second moment's decay (adam, yogi, fadas)."""
    epsilon: Positive = 1e-3
    """Degree of adaptivity: tau in the FedOpt paper."""
    options: Options = NO_OPTIONS
    """What the optimiser takes: name=value,name=value. fadas: delay; delayed_nesterov: period, activation."""


class VersionSettings(Section):
    full_every: Annotated[int, Field(ge=1, le=4096)] = 16
    """Every n-th version is written in full, lossless; those between as a quantised delta on what readers hold. 1:
    every version is full."""
    codec: Literal["int8", "int4", "topk2"] = "int4"
    """Codec of the versions between; what it leaves out of one goes into the next. topk2: for updates of topk2, of
    which a version moves few elements."""
    block: Annotated[int, Field(ge=32, le=1024), AfterValidator(power_of_two)] = 256
    """Elements of a version that share a scale (int8, int4); a power of two."""
    chunk: Annotated[int, Field(ge=64, le=65536), AfterValidator(power_of_two)] = 4096
    """Elements of a chunk, of which topk2 keeps the largest; a power of two."""
    keep: Count = 256
    """How many elements of a chunk topk2 keeps. All that K updates have moved, with K times their codec.keep."""

    @model_validator(mode="after")
    def _keeps_no_more_than_there_is(self) -> Self:
        if self.keep > self.chunk:
            raise ValueError(f"keep: {self.keep} is more than a chunk has ({self.chunk})")
        return self


class StopSettings(Section):
    rule: StopRuleName = "standard"
    """standard: by the settings below. Or one of your own."""
    options: Options = NO_OPTIONS
    """What a stop rule of your own takes: name=value,name=value."""
    source: Literal["evaluator", "sites"] = "evaluator"
    """Whose evaluations target, patience and the guard look at. sites: those of the clients on their own data."""
    quorum: Count | None = None
    """Sites that must have reported on a version before it counts. Unset: more than half of those that take part, at
    most 4."""
    quorum_seconds: Positive = 60.0
    """So long after the first report on a version half of the quorum is enough."""
    of_sites: Literal["mean", "median", "worst"] = "mean"
    """What of the sites' values target and patience look at: the mean over examples, the median, the worst site's."""
    metric: Annotated[str, Field(min_length=1)] = "accuracy"
    """Evaluation metric that target and patience look at."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""
    target: float | None = None
    """The run ends when the metric reaches this."""
    patience: Count | None = None
    """The run ends after this many evaluations without a new best."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """What counts as a new best."""
    max_versions: Count | None = None
    """The run ends at this version."""
    max_seconds: Positive | None = None
    """The run ends after this long."""


class AggregatorSettings(Section):
    init: FilePath | None = None
    """Begin with the weights of this safetensors file in place of the task's. For version 0 alone."""
    init_from: Annotated[str, AfterValidator(_version_name)] | None = None
    """Begin with those of another federation's version: NAME (its newest) or NAME:VERSION, from the log, or else from
    the registry. For version 0 alone."""
    beat_seconds: Positive = 0.5
    """How often the aggregator that leads says that it is alive."""
    takeover_seconds: Positive = 3.0
    """A waiting aggregator takes over when the one that leads was silent for this long."""
    utilisation: Fraction = 0.9
    """Share of its time that the aggregator means to be busy; clients are told to send less often beyond that."""
    decode_bytes: Whole = 1 << 30
    """How much memory a decoded update may take; a larger one is decoded twice, slice by slice, as float32 always is.
    int8 and int4 take 1 byte a parameter, float16 and bfloat16 2, topk and topk2 8 for each that they keep."""
    refusals_kept: Count = 64
    """Refused updates of one client that are written into `<f>.quarantine` and the events in a minute; more are only
    counted (`llmos_unlisted_refusals`)."""
    refused_bytes_kept: Annotated[int, Field(ge=4096, le=MOST)] = 128 << 10
    """Bytes of them in `<f>.quarantine`, in a minute."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where updates are folded. cuda: weights, sum and moments lie on the GPU, and the versions are the same bit for
    bit. auto: there where there is one."""

    @model_validator(mode="after")
    def _is_of_one_mind(self) -> Self:
        if self.init is not None and self.init_from is not None:
            raise ValueError("init and init_from: name one of them")
        if self.takeover_seconds < 2 * self.beat_seconds:
            raise ValueError(f"takeover_seconds must be at least twice beat_seconds ({self.beat_seconds:g})")
        return self
