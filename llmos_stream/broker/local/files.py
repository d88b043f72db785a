"""The files that a single-node Kafka is started with."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

# A node that was killed cannot come back before its old session has timed out, so that is short.
_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs={folder}/log
auto.create.topics.enable=false
default.replication.factor=1
num.partitions=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
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


def write(folder: Path, port: int, controller_port: int, more: Mapping[str, str]) -> None:
    """Put `server.properties` and `log4j2.xml` into `folder`; the log's own data goes to `folder/log`.

    `more` adds to the properties and overrides them. The listener for clients is called CLIENTS.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = _SERVER.format(port=port, controller_port=controller_port, folder=folder.resolve())
    text += "".join(f"{name}={value}\n" for name, value in more.items())  # the last one of a name counts
    (folder / "server.properties").write_text(text)
    (folder / "log4j2.xml").write_text(_LOGGING)


def formatted(folder: Path) -> bool:
    """Whether `folder` has been a Kafka's before."""
    return (folder / "log" / "meta.properties").is_file()


def cluster_id() -> str:
    """A new Kafka cluster id: 16 bytes in 22 characters, the first of which must not look like an option's dash."""
    return base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).decode().rstrip("=")
