"""How a process reaches Kafka, what its topics keep, and how messages are cut into records."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from llmos_stream.config.base import MOST, NAME_PATTERN, Count, FilePath, Positive, Section, Whole, host_name
from llmos_stream.config.presets import PresetName


class FederationSettings(Section):
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "llmos"
    """Name of the federation, and the prefix of its topics."""
    preset: PresetName | None = None
    """A name for a set of values, which lie beneath all that is said otherwise; for clients and aggregator alike.
    diloco: float32 deltas, Nesterov's momentum at the server. sparseloco: topk2 deltas, decaying error feedback.
    devices: a milder discount of stale updates. silos: none, and larger versions. llm: topk2 deltas, a quarter kept."""


def _addresses(value: object) -> object:
    """Addresses with commas between, from a text or a list, as they are handed to Kafka's client."""
    if not isinstance(value, str | list | tuple):
        return value
    parts = value.split(",") if isinstance(value, str) else map(str, value)
    return ",".join(_address(part.strip()) for part in parts if part.strip()) or None


def _address(text: str) -> str:
    if "@" in text:
        raise ValueError("leave user and password out of it; they are broker.sasl_username and broker.sasl_password")
    if " " in text:
        raise ValueError(f"{text!r} is not HOST:PORT; several addresses have commas between them")
    if "://" in text:
        raise ValueError(f"{text!r} is not HOST:PORT; Kafka's addresses have no scheme")
    host, colon, port = text.rpartition(":") if re.search(r":[^\]]*$", text) else (text, "", "")
    if ":" in host and not re.fullmatch(r"\[[^\[\]]*\]", host):
        raise ValueError(f"{text!r} is not HOST:PORT; an IPv6 address stands in brackets, as in [::1]:9092")
    if colon and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to 65535")
    host_name(host.removeprefix("[").removesuffix("]"))
    return text


class BrokerSettings(Section):
    bootstrap_servers: Annotated[str | None, BeforeValidator(_addresses)] = None
    """Kafka to join, as HOST:PORT[,HOST:PORT...]. Unset: a federation embedded in this process."""
    connect_timeout_seconds: Positive = 8.0
    """How long the first connection may take."""
    request_timeout_seconds: Positive = 40.0
    """How long one request to the broker may take."""
    transaction_timeout_seconds: Positive = 60.0
    """The broker aborts a transaction that stays open for longer than this."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are secured, in Kafka's own terms."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """SASL mechanism, where security_protocol is SASL_*."""
    sasl_username: str | None = None
    """SASL user name."""
    sasl_password: SecretStr | None = None
    """SASL password; never logged."""
    ssl_cafile: FilePath | None = None
    """CA certificates (PEM) that the brokers' certificates must chain to."""
    ssl_certfile: FilePath | None = None
    """This client's certificate (PEM), for mutual TLS."""
    ssl_keyfile: FilePath | None = None
    """The key of ssl_certfile (PEM)."""
    max_partition_fetch_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 1924 * 1024
    """Bytes that one fetch takes from one partition; the default fits two records of wire.chunk_bytes. Raise it on
    links with a long round trip; a reader takes about four times as much memory."""
    fetch_max_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20
    """Bytes that one fetch takes from all partitions together."""
    fetch_max_wait_ms: Annotated[int, Field(ge=1, le=30_000)] = 500
    """How long the broker holds a fetch while there is nothing new; 50 at most for a reader of several partitions."""
    max_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64 * 1024
    """Bytes of small records that are sent as one batch, while the request before them is under way."""
    linger_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """How long a batch waits for more records."""
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Kafka's own compression. Payloads are compressed already; all but gzip need the package cramjam everywhere."""
    heap_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 16 << 20
    """Bytes of freed memory that a process on Kafka keeps for its next records, in one malloc arena (glibc). 0: leave
    malloc as it is; FederatedLearning does so unless this is set."""

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
    """How many GiB of snapshots of the aggregator's own state are kept; a server optimiser with moments writes one
    with every version."""
    events_retention_hours: Positive = 24.0 * 7
    """How long events are kept."""
    evaluations_retention_hours: Positive = 24.0 * 7
    """How long evaluations are kept."""
    quarantine_retention_hours: Positive = 24.0 * 7
    """How long the records of refused updates are kept."""
    locals_retention_hours: Positive = 24.0
    """How long models that sites have trained alone and share are kept. Short, as for updates."""
    locals_retention_gib: Positive = 4.0
    """How many GiB of these are kept at most."""


class WireSettings(Section):
    chunk_bytes: Annotated[int, Field(ge=1024, le=1_000_000)] = 960 * 1024
    """Bytes of a message that one record carries; they must fit Kafka's default limit of 1 MiB."""
    incomplete_seconds: Positive = 60.0
    """A half-received message is dropped when no chunk of it has come for this long."""
    message_seconds: Positive = 3600.0
    """A message that is not whole this long after it began is dropped, however its chunks come."""
    pending_bytes: Annotated[int, Field(ge=1 << 20, le=MOST)] = 4 << 30
    """Bytes of half-received messages that are held at most; then the oldest of the client that holds most is
    dropped."""
    client_bytes: Count | None = None
    """Bytes of half-received messages that are held of one client; past that its older ones are dropped for its newest,
    which alone may have all of pending_bytes. Unset: half of pending_bytes."""
    memory_bytes: Whole = 4 << 20
    """How much of pending_bytes is held in memory; the rest lies in a temporary file."""
    spool_dir: FilePath | None = None
    """Folder of that temporary file, on a disk with room for pending_bytes (/tmp may be memory); the log of a
    federation that FederatedLearning embeds lies there too. Unset: the system's folder for temporary files."""
