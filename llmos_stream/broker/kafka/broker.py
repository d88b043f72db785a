"""A Kafka cluster as a broker."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self, Unpack

import aiokafka.errors as theirs
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from llmos_stream.broker.kafka.connection import Connection, Partition, topic_partitions
from llmos_stream.broker.kafka.producer import KafkaProducer
from llmos_stream.broker.kafka.reader import KafkaReader
from llmos_stream.broker.policies import tell_differences
from llmos_stream.broker.ports import Broker, ReaderOptions, TopicInfo, TopicSpec
from llmos_stream.broker.rules import topic_missing
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import BrokerError, BrokerUnavailable, TopicMissing

_log = logging.getLogger(__name__)
_SET_FOR_THIS_TOPIC = 1  # config_source DYNAMIC_TOPIC_CONFIG of DescribeConfigs
_LONGEST = "transaction.max.timeout.ms"
_SETTLE_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


def connect(settings: BrokerSettings) -> Broker:
    """The Kafka cluster of `bootstrap_servers`; `async with` it to be sure that it answers.

    Raises ConfigError where none is named: a log inside one process must be asked for by making a
    `MemoryBroker`, since nothing outside this process could join it.
    """
    return KafkaBroker(settings)


class KafkaBroker:
    """See `ports.Broker`. Holds no connection of its own, so it may be shared between event loops.

    Raises ConfigError where the settings name no server or unreadable certificates.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._connection = Connection(settings)

    async def __aenter__(self) -> Self:
        async with self._connection.admin():
            return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close: producers and readers close what they open."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        async with self._connection.admin() as admin:
            names = [spec.name for spec in specs]
            present = await topic_partitions(admin, names)
            missing = [spec for spec in specs if spec.name not in present]
            created = await self._create(admin, missing) if missing else []
            if created:
                present = await topic_partitions(admin, names)
            # Those just made as well: what nothing was set for is as the cluster's defaults say.
            wanted = {spec.name: spec for spec in specs}
            for info in await self._infos(admin, present):
                tell_differences(_log, wanted[info.name], info)
            return created

    async def list_topics(self, prefix: str = "") -> list[TopicInfo]:
        async with self._connection.admin() as admin:
            return await self._infos(
                admin,
                {
                    name: partitions
                    for name, partitions in (await topic_partitions(admin)).items()
                    if name.startswith(prefix) and not name.startswith("__")
                },
            )

    async def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        async with self._connection.admin() as admin:
            for info in await self._infos(admin, await topic_partitions(admin, [name])):
                # Kafka forgets what is not said.
                resource = ConfigResource(ConfigResourceType.TOPIC, name, {**info.config, **config})
                for answer in await admin.alter_configs([resource]):
                    for code, message, *_ in answer.resources:
                        _raise_refused(code, f"topic {name} cannot be changed", "AlterConfigs", message)
                await self._settle_config(admin, name, config)
                return
        raise TopicMissing(topic_missing(name))

    async def longest_transaction_seconds(self) -> float | None:
        async with self._connection.admin() as admin:
            nodes = [node["node_id"] for node in (await admin.describe_cluster())["brokers"]]
            asked = ConfigResource(ConfigResourceType.BROKER, str(nodes[0]), {_LONGEST: None})
            for answer in await admin.describe_configs([asked]):
                for resource in answer.resources:
                    for setting, value, *_ in resource[-1]:
                        if setting == _LONGEST:
                            return int(value) / 1000
        return None

    async def delete_topics(self, names: Sequence[str]) -> None:
        async with self._connection.admin() as admin:
            answer = await admin.delete_topics(list(names))
            for name, code in answer.topic_error_codes:
                if theirs.for_code(code) is not theirs.UnknownTopicOrPartitionError:
                    _raise_refused(code, f"topic {name} cannot be deleted", "Delete")
            await self._settle(admin, gone=names)

    def producer(self, transactional_id: str | None = None) -> KafkaProducer:
        return KafkaProducer(self._connection, transactional_id)

    def reader(self, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> KafkaReader:
        return KafkaReader(self._connection, topics, **options)

    async def _create(self, admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> list[str]:
        answer = await admin.create_topics(
            [
                # aiokafka takes replication -1 (the broker's default) only with an assignment, be it empty.
                NewTopic(
                    spec.name,
                    spec.partitions,
                    spec.replication_factor,
                    {} if spec.replication_factor == -1 else None,
                    dict(spec.config),
                )
                for spec in specs
            ]
        )
        created = []
        for name, code, message in answer.topic_errors:
            if theirs.for_code(code) is not theirs.TopicAlreadyExistsError:
                _raise_refused(code, f"topic {name} cannot be created", "Create", message)
                created.append(name)
        await self._settle(admin, there=created)
        return created

    async def _settle(self, admin: AIOKafkaAdminClient, *, there: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        """Wait until the brokers agree: they answer before all of them know."""
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while True:
                    present = await topic_partitions(admin, [*there, *gone])
                    led = {
                        name for name, parts in present.items() if min((part.leader for part in parts), default=-1) >= 0
                    }
                    if led.issuperset(there) and present.keys().isdisjoint(gone):
                        return
                    await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            where, names = f"Kafka at {self._connection.address}", ", ".join([*there, *gone])
            raise BrokerUnavailable(f"{where}: no leaders for {names} after {_SETTLE_SECONDS:g} s") from None

    async def _settle_config(self, admin: AIOKafkaAdminClient, name: str, config: Mapping[str, str]) -> None:
        """Wait a while until what was set is what is told: the controller answers before the brokers know."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while True:
                    found = await self._infos(admin, await topic_partitions(admin, [name]))
                    # Nothing is told to a user who may alter but not describe, nor of a topic that goes meanwhile.
                    if all(not info.effective or config.items() <= info.effective.items() for info in found):
                        return
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _infos(self, admin: AIOKafkaAdminClient, partitions: dict[str, list[Partition]]) -> list[TopicInfo]:
        """What was set for each of these topics; nothing where the ACLs do not let us see it."""
        if not partitions:
            return []
        set_here: dict[str, dict[str, str]] = {name: {} for name in partitions}
        holding: dict[str, dict[str, str]] = {name: {} for name in partitions}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in partitions]
        for answer in await admin.describe_configs(resources):
            for _code, _message, _kind, name, entries in answer.resources:
                for setting, value, _, source, *_ in entries:
                    holding[name][setting] = value
                    if source == _SET_FOR_THIS_TOPIC:
                        set_here[name][setting] = value
        return [
            TopicInfo(
                name, len(parts), set_here[name], holding[name], min((part.replicas for part in parts), default=1)
            )
            for name, parts in sorted(partitions.items())
        ]


def _raise_refused(code: int, what: str, right: str, message: str | None = None) -> None:
    """Raise what Kafka answered, unless it did as it was asked. `right` is what an ACL must give for that."""
    error = theirs.for_code(code)
    if error is theirs.TopicAuthorizationFailedError:
        raise BrokerError(f"{what}: this user may not ({right}); an ACL must allow it, or somebody else do it")
    if error is not theirs.NoError:
        raise BrokerError(f"{what}: {error.__name__}" + (f": {message}" if message else ""))
