"""The files that a node of a local Kafka is started with."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos_stream.errors import ConfigError

# A node that was killed cannot come back before its old session has timed out, so that is short.
_SERVER = """\
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs={folder}/log
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
num.partitions=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.retention.check.interval.ms=10000
"""
_LOGGING = """\
<Configuration status="warn">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="%d %p %m (%c{1})%n"/></Console>
  </Appenders>
  <Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node listens on loopback and keeps its files."""

    number: int
    folder: Path
    port: int
    controller_port: int


def write(place: Place, nodes: Sequence[Place], more: Mapping[str, str]) -> None:
    """Put `server.properties` and `log4j2.xml` into the place's folder; the log's own data goes to its `log`.

    Every one of `nodes` has a copy of each partition, and all but one must have taken a record before it counts as
    written. `more` adds to the properties and overrides them. The listener for clients is called CLIENTS.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    text = _SERVER.format(
        number=place.number,
        port=place.port,
        controller_port=place.controller_port,
        voters=",".join(f"{node.number}@127.0.0.1:{node.controller_port}" for node in nodes),
        folder=_as_java_reads(place.folder.resolve()),
        replicas=len(nodes),
        in_sync=max(len(nodes) - 1, 1),
    )
    text += "".join(f"{name}={value}\n" for name, value in more.items())  # the last one of a name counts
    (place.folder / "server.properties").write_text(text, encoding="latin-1")
    (place.folder / "log4j2.xml").write_text(_LOGGING)


def _as_java_reads(folder: Path) -> str:
    """A path as a properties file has it: Java reads those as Latin-1, and takes a backslash for an escape.

    Raises:
        ConfigError: It has a comma, which separates several folders for Kafka.
    """
    if "," in str(folder):
        raise ConfigError(f"Kafka cannot keep its log in {folder}: a comma separates folders for it; take another one")
    units = str(folder).encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return "".join(chr(code) if 32 <= code < 127 and code != 92 else f"\\u{code:04x}" for code in codes)


def formatted(folder: Path) -> bool:
    """Whether `folder` has been a Kafka's before."""
    return (folder / "log" / "meta.properties").is_file()


def cluster_id() -> str:
    """A new Kafka cluster id: 16 bytes in 22 characters, the first of which must not look like an option's dash."""
    return base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).decode().rstrip("=")
