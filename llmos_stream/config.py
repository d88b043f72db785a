"""Every setting: its name, its range, its default and what it does.

One value is looked up as flag, then environment (`LLMOS_SECTION__FIELD`), then TOML file, then
default. All sections are frozen: a run has the settings it started with.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from llmos_stream.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CONFIG_VARIABLE = "LLMOS_CONFIG"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"{value} is not a power of two")
    return value


def _none_where_empty(token: SecretStr | None) -> SecretStr | None:
    """A variable that is set to nothing, as in a file of variables to fill in, is no token that anybody could guess."""
    return token if token is not None and token.get_secret_value() else None


def _no_password(value: str) -> str:
    if "@" in urlsplit(value).netloc:
        raise ValueError("leave user and password out of it; give them as the store's own variables or files")
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class FederationSettings(Section):
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "llmos"
    """Name of the federation, and the prefix of its topics."""


class BrokerSettings(Section):
    bootstrap_servers: str | None = None
    """Kafka to join, as HOST:PORT[,HOST:PORT...]. Unset: a federation embedded in this process."""
    connect_timeout_seconds: Positive = 8.0
    """How long a first connection may take before the one clear error."""
    request_timeout_seconds: Positive = 40.0
    """How long one request to the broker may take."""
    transaction_timeout_seconds: Positive = 60.0
    """After this long the broker aborts a transaction whose writer hangs."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are secured, in Kafka's own terms."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """SASL mechanism, where security_protocol is SASL_*."""
    sasl_username: str | None = None
    """SASL user name."""
    sasl_password: SecretStr | None = None
    """SASL password; never logged."""
    ssl_cafile: Path | None = None
    """CA certificates (PEM) that the brokers' certificates must chain to."""
    ssl_certfile: Path | None = None
    """This client's certificate (PEM), for mutual TLS."""
    ssl_keyfile: Path | None = None
    """The key of ssl_certfile (PEM)."""
    max_partition_fetch_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 1924 * 1024
    """Bytes that one fetch takes from one partition: two records of wire.chunk_bytes. More suits links with a long
    round trip; a reader takes about four times as much memory."""
    fetch_max_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20
    """Bytes that one fetch takes from all partitions together."""
    fetch_max_wait_ms: Annotated[int, Field(ge=1, le=30_000)] = 500
    """How long the broker holds a fetch while there is nothing new; 50 at most for a reader of several partitions."""
    max_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64 * 1024
    """Bytes of small records that wait for the request before them and then go as one batch."""
    linger_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """How long a batch waits for more records."""
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Kafka's own compression. Payloads are compressed already; all but gzip need the package cramjam everywhere."""
    heap_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 16 << 20
    """Freed memory that a process on Kafka keeps for its next records, in one malloc arena (glibc). 0 leaves malloc as
    it is, as FederatedLearning does unless this is set."""

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_username and sasl_password")
        return self


class TopicSettings(Section):
    updates_partitions: Count = 1
    """Partitions of `<f>.updates`."""
    replication_factor: Annotated[int, Field(ge=-1, le=32)] = -1
    """Replicas of every topic; -1 takes the broker's default."""
    updates_retention_hours: Positive = 24.0
    """How long raw updates are kept. Short: they are personal data."""
    models_retention_gib: Positive = 16.0
    """How many GiB of versions are kept."""
    snapshots_retention_gib: Positive = 16.0
    """How many GiB of snapshots of the aggregator's own state are kept (server optimisers with moments write one
    with every version)."""
    events_retention_hours: Positive = 24.0 * 7
    """How long events are kept."""
    quarantine_retention_hours: Positive = 24.0 * 7
    """How long quarantine entries are kept."""


class WireSettings(Section):
    chunk_bytes: Annotated[int, Field(ge=1024, le=1_000_000)] = 960 * 1024
    """Bytes of a message that one record carries; must fit Kafka's default limit of 1 MiB."""
    incomplete_seconds: Positive = 60.0
    """A half-received message is dropped when no chunk of it came for this long."""
    pending_bytes: Annotated[int, Field(ge=1 << 20)] = 4 << 30
    """Bytes of half-received messages held at most; past that the longest idle one is dropped."""
    memory_bytes: Annotated[int, Field(ge=0)] = 4 << 20
    """How much of pending_bytes is held in memory; the rest lies in a temporary file."""
    spool_dir: Path | None = None
    """Folder of that file: on a disk (what /tmp holds may be memory) with room for pending_bytes. Unset: the system's
    for such files."""


class CodecSettings(Section):
    name: Literal["float32", "float16", "bfloat16", "int8", "int4", "topk"] = "int8"
    """Codec of the updates."""
    block: Annotated[int, Field(ge=32, le=1024), AfterValidator(_power_of_two)] = 512
    """Elements that share a scale (int8, int4); a power of two."""
    rounding: Literal["stochastic", "nearest"] | None = None
    """Rounding of int8, int4 and the values of top-k. Unset: to nearest, which errs half as much, where error_feedback
    makes up for its bias; stochastic, which has none, without."""
    fraction: Fraction = 0.1
    """Share of the elements that top-k keeps."""
    error_feedback: bool = True
    """Add what the lossy codec left out to the next update."""
    zstd_level: Annotated[int, Field(ge=1, le=19)] = 1
    """zstd level of updates."""


class StalenessSettings(Section):
    kind: Literal["constant", "polynomial", "hinge"] = "polynomial"
    """s(tau): 1, (1 + tau)^-a, or 1 up to b and 1 / (a (tau - b) + 1) beyond."""
    a: Positive = 0.5
    """How fast the weight falls (polynomial, hinge)."""
    b: Annotated[float, Field(ge=0)] = 4.0
    """Staleness up to which the hinge gives full weight."""
    maximum: Annotated[int, Field(ge=0)] = 20
    """An update staler than this is refused."""


class AggregationSettings(Section):
    strategy: Literal["fedbuff", "fedasync"] = "fedbuff"
    """fedbuff: one version for each buffer of updates. fedasync: mix every update in on arrival."""
    buffer_size: Annotated[int, Field(ge=1, le=2048)] = 4
    """Updates that make a version (fedbuff)."""
    deadline_seconds: Positive = 10.0
    """A buffer that is not empty becomes a version this long after its first update."""
    mixing: Fraction = 0.6
    """alpha of fedasync."""
    clip_norm: Positive | None = None
    """L2 norm that no delta may exceed; a longer one is scaled down. Unset: no clipping."""
    max_num_examples: Count = 1_000_000_000
    """An update that claims more examples than this is refused."""


class ServerOptimizerSettings(Section):
    name: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    """How the server applies the pseudo-gradient (FedOpt); sgd with lr 1 is FedAvg."""
    lr: Positive = 1.0
    """Server learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of sgd."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """First moment's decay (adam, yogi, adagrad)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Second moment's decay (adam, yogi)."""
    epsilon: Positive = 1e-3
    """Degree of adaptivity: tau in the FedOpt paper."""


class VersionSettings(Section):
    full_every: Annotated[int, Field(ge=1, le=4096)] = 16
    """Every n-th version is written in full, lossless; those between as a quantised delta on what readers hold. 1:
    every version is full."""
    codec: Literal["int8", "int4"] = "int4"
    """Codec of the versions between; what it leaves out of one goes into the next."""
    block: Annotated[int, Field(ge=32, le=1024), AfterValidator(_power_of_two)] = 256
    """Elements of a version that share a scale; a power of two."""


class StopSettings(Section):
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


class TaskSettings(Section):
    entry: str = "digits"
    """What is learnt: `digits`, `blobs`, `noop:N`, or `package.module:callable` of your own, which returns a Task."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the split and the batches."""
    shards: Count = 8
    """Into how many unequal shards the task's data is split."""
    alpha: Positive = 0.3
    """Dirichlet concentration of the labels over the shards; small is more skewed."""
    share: str = "all"
    """Tensors that are shared: all, trainable, adapters, no-norm, or a glob such as `encoder.*`."""


class ClientSettings(Section):
    id: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of this client, unique in the federation. Unset: this host's name and the shard."""
    shard: Annotated[int, Field(ge=0)] = 0
    """Which shard of the task's data this client holds."""
    state_dir: Path | None = None
    """Folder for the sequence, the residual and the unsent update. Unset: one of its own in the user's state folder."""
    epochs: Count = 1
    """Local epochs between two updates."""
    batch_size: Count = 32
    """Examples in a batch."""
    lr: Positive = 0.05
    """Learning rate of the task's local optimiser."""
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Speed factor: 0.1 behaves as a device ten times slower."""
    min_train_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Training takes at least this long at speed 1: shows devices that are slower than this machine."""
    wait_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long to wait for a newer version before training on the same one again; doubles while none comes."""
    join_delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Join this long after the start."""
    max_updates: Count | None = None
    """Leave after this many updates."""


class AggregatorSettings(Section):
    beat_seconds: Positive = 0.5
    """How often the aggregator that leads says that it is alive."""
    takeover_seconds: Positive = 3.0
    """A waiting aggregator takes over when the one that leads was silent for this long."""
    utilisation: Fraction = 0.9
    """Share of its time that the aggregator means to be busy; clients are told to send less often beyond that."""
    decode_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """How much memory a decoded update may take; a larger one is decoded twice, slice by slice, as float32 always is.
    int8 and int4 take 1 byte a parameter, float16 and bfloat16 2, top-k 8 for each that it keeps."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where updates are folded. cuda: weights, sum and moments lie on the GPU, and the versions are the same bit for
    bit. auto: there where there is one."""

    @model_validator(mode="after")
    def _one_beat_may_be_missed(self) -> Self:
        if self.takeover_seconds < 2 * self.beat_seconds:
            raise ValueError(f"takeover_seconds must be at least twice beat_seconds ({self.beat_seconds:g})")
        return self


class EvaluatorSettings(Section):
    batch_size: Count = 512
    """Examples in an evaluation batch."""
    every: Count = 1
    """Evaluate every n-th version."""


class InferenceSettings(Section):
    host: str = "127.0.0.1"
    """Address that predictions are asked for at; 0.0.0.0 for all, as in a container."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the same (0: any that is free)."""
    token: Annotated[SecretStr | None, AfterValidator(_none_where_empty)] = None
    """Who sends it as a bearer token may pin, send a share to the newest and go back. Unset: nobody may."""
    canary: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the newest version answers, where another one serves."""
    keep: Count = 3
    """How many of the newest versions are held in memory, beside those that are promoted, pinned or gone back to."""
    max_batch: Count = 64
    """Examples in one forward pass, and in one request, at most."""
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """How long a request waits for others to share its forward pass."""
    max_waiting: Count = 1024
    """Examples that wait at most; past that a request is turned away (503)."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20
    """Bytes of a request's body at most; it has a minute to come."""

    @model_validator(mode="after")
    def _a_batch_may_wait(self) -> Self:
        if self.max_waiting < self.max_batch:
            raise ValueError(f"max_waiting must be at least max_batch ({self.max_batch})")
        return self


class RegistrySettings(Section):
    url: Annotated[str, Field(min_length=1), AfterValidator(_no_password)] | None = None
    """Where versions are archived: a folder or a URL of fsspec, as in file:///srv/models or s3://bucket/path. Unset:
    nowhere."""
    keep: Literal["every", "last", "promoted"] = "every"
    """What is archived: every n-th version, the last of the run and the promoted one; the last and the promoted one;
    the promoted one alone."""
    every: Count = 10
    """Every how many-th version is archived."""
    most: Count | None = None
    """How many versions are kept beside the promoted one and the one before it; the oldest go. Unset: all."""


class DashboardSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Show the live page on this port (0: any that is free). Unset: not at all."""
    host: str = "127.0.0.1"
    """Address of the same; 0.0.0.0 for all, as in a container. Whoever reaches it may look."""
    allowed_hosts: Annotated[str | None, Field(pattern=r"^(\*|[\w.-]+( *, *[\w.-]+)*)?$")] = None
    """Names, separated by commas, under which browsers may open it, beside addresses, localhost, this machine's name,
    names without a dot and those of Kubernetes services. *: any."""
    token: Annotated[SecretStr | None, AfterValidator(_none_where_empty)] = None
    """Who types it into the page, or sends it as a bearer token, may pause, resume and promote. Unset: nobody may."""
    viewers: Annotated[int, Field(ge=1, le=1000)] = 100
    """Pages that are kept up to date at a time."""


class RuntimeSettings(Section):
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads for tensor work, compression and hashing."""
    torch_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads inside one torch operation; 0 leaves torch's default."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""
    log_json: bool = False
    """Log JSON lines for machines in place of lines for people."""
    stop_seconds: Positive = 30.0
    """How long a process that was asked to stop may take to finish what is under way; then it is cut short."""


class OperationsSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Answer /health, /ready and /metrics over HTTP on this port (0: any that is free). Unset: not at all."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all, as in a container. There is no authentication."""
    stuck_seconds: Positive = 30.0
    """/health says no when the event loop has not come round for this long."""


class TracingSettings(Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = None
    """Where spans go, as OTLP over HTTP: http://collector:4318/v1/traces. Unset: nowhere. A token for it comes in the
    variable OTEL_EXPORTER_OTLP_HEADERS."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the updates that are traced; the client decides for all that comes of one."""

    @model_validator(mode="after")
    def _endpoint_without_password(self) -> Self:
        if self.endpoint is not None:
            _no_password(self.endpoint)
        return self


class Settings(BaseSettings):
    """All settings of a process."""

    model_config = SettingsConfigDict(
        env_prefix="LLMOS_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    federation: FederationSettings = FederationSettings()
    broker: BrokerSettings = BrokerSettings()
    topics: TopicSettings = TopicSettings()
    wire: WireSettings = WireSettings()
    codec: CodecSettings = CodecSettings()
    staleness: StalenessSettings = StalenessSettings()
    aggregation: AggregationSettings = AggregationSettings()
    server_optimizer: ServerOptimizerSettings = ServerOptimizerSettings()
    versions: VersionSettings = VersionSettings()
    stop: StopSettings = StopSettings()
    task: TaskSettings = TaskSettings()
    client: ClientSettings = ClientSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    evaluator: EvaluatorSettings = EvaluatorSettings()
    inference: InferenceSettings = InferenceSettings()
    registry: RegistrySettings = RegistrySettings()
    dashboard: DashboardSettings = DashboardSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    operations: OperationsSettings = OperationsSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        optimizer = self.server_optimizer
        if optimizer.name != "sgd" and optimizer.momentum:
            raise ValueError("server_optimizer.momentum: only sgd has one; the others take beta1")
        if self.aggregation.strategy == "fedasync" and optimizer != ServerOptimizerSettings():
            raise ValueError("server_optimizer: fedasync mixes models and takes no server optimiser; leave it out")
        if self.client.shard >= self.task.shards:
            raise ValueError(
                f"client.shard: {self.client.shard} is not one of task.shards ({self.task.shards}), counted from 0"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment before file; the file's path comes from `load`."""
        file = cls._file
        return (init_settings, env_settings, *([TomlConfigSettingsSource(settings_cls, file)] if file else []))

    _file: ClassVar[Path | None] = None


SECTIONS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def load(overrides: Mapping[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Read all settings; `overrides` (nested, by section) win, `file` defaults to `$LLMOS_CONFIG`.

    Raises ConfigError that lists each field that is wrong, with the reason.
    """
    path = file or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if path is not None and not path.is_file():
        raise ConfigError(f"settings file {path} does not exist")

    class FromFile(Settings):
        _file: ClassVar[Path | None] = path

    try:
        return FromFile(**(overrides or {}))
    except (ValidationError, SettingsError) as error:
        raise ConfigError(explain(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings; secrets are left to its own environment."""
    return {
        f"LLMOS_{section}__{name}".upper(): str(value)
        for section in SECTIONS
        for name, value in getattr(settings, section)
        if value is not None and not isinstance(value, SecretStr)
    }


def explain(error: ValidationError | SettingsError) -> str:
    """One line a wrong field: its dotted name and the reason, without the value (it may be secret)."""
    if not isinstance(error, ValidationError):
        return f"settings: {error}"
    lines = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"])
        reason = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {reason}" if name else reason)
    return "\n".join(lines)
