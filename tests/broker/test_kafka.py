"""What only a real Kafka can do: be unreachable, delete records, refuse them, ask for credentials."""

import asyncio
import gc
import inspect
import logging
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from pydantic import SecretStr

from llmos_stream.broker import Broker, LocalKafka, Record, TopicPartition, connect
from llmos_stream.broker.kafka.reader import KafkaReader
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import BrokerError, BrokerUnavailable, ConfigError, OffsetGone, RecordTooLarge, TopicMissing
from tests.broker.helpers import PATIENCE_SECONDS, commit, make_topic, read_all, take, values, write_one
from tests.conftest import IN_CI, KafkaNode, need_a_local_kafka


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _impatient(address: str, **more: object) -> BrokerSettings:
    return BrokerSettings.model_validate({"bootstrap_servers": address, "connect_timeout_seconds": 0.5, **more})


# Nobody there


@pytest.mark.parametrize("use", ["enter", "producer", "transactional", "reader", "topics"])
async def test_an_unreachable_broker_is_one_clear_error_in_time(use: str, caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{_closed_port()}"
    broker = connect(_impatient(address))
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        await _use(broker, use)
    assert time.monotonic() - began < PATIENCE_SECONDS
    for part in (address, "Connect call failed", "LLMOS_BROKER__BOOTSTRAP_SERVERS", "llmos-stream broker start"):
        assert part in str(caught.value)
    assert caught.value.retriable
    assert caplog.records == []


@pytest.mark.kafka
async def test_a_start_that_is_cancelled_leaves_no_connection_open(kafka: KafkaNode) -> None:
    """A warning about an unclosed transport would fail this test. Cancelled at a dozen points between 0 and 33 ms."""
    for milliseconds in range(0, 36, 3):
        broker = connect(kafka.settings())
        opening = asyncio.create_task(broker.producer().__aenter__())
        await asyncio.wait([opening], timeout=milliseconds / 1000)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await opening.result().__aexit__(None, None, None)
        gc.collect()


@pytest.mark.kafka
async def test_an_end_that_is_cancelled_leaves_no_connection_open(kafka: KafkaNode, federation: str) -> None:
    """Whoever is cancelled once more while it closes what it uses: at once, and a while later."""
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer:
        await producer.send(topic, b"one")
    for milliseconds in (0, 1, 2, 4, 8):
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, producer = broker.reader([topic], start="earliest"), broker.producer()
            await take(await reader.__aenter__(), 1)
            await (await producer.__aenter__()).send(topic, b"another")
            closing = [asyncio.create_task(client.__aexit__(None, None, None)) for client in (reader, producer)]
            await asyncio.wait(closing, timeout=milliseconds / 1000)
            for task in closing:
                task.cancel()
            await asyncio.wait(closing)
        del reader, producer, closing, task
        gc.collect()


async def test_somebody_who_never_answers_is_unreachable_too() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        with pytest.raises(BrokerUnavailable, match=address):
            await connect(_impatient(address)).list_topics()


async def test_no_server_named_is_a_setting_to_make() -> None:
    with pytest.raises(ConfigError, match="embedded"):
        connect(BrokerSettings())
    with pytest.raises(ConfigError, match="ssl_cafile"):
        connect(BrokerSettings(bootstrap_servers="x:1", security_protocol="SSL", ssl_cafile=Path("/nowhere.pem")))


async def _use(broker: Broker, use: str) -> None:
    if use == "enter":
        async with broker:
            pass
    elif use == "producer":
        async with broker.producer():
            pass
    elif use == "transactional":
        async with broker.producer("id"):
            pass
    elif use == "reader":
        async with broker.reader(["topic"], start="committed", group="g"):
            pass
    else:
        await broker.list_topics()


# Deleted records


@pytest.mark.kafka
async def test_a_seek_back_is_heard_by_a_fetch_that_has_not_begun(kafka: KafkaNode, federation: str) -> None:
    """After the last record aiokafka makes another fetch. To cancel one before its first step ended all fetching."""
    met = False
    async with connect(kafka.settings()) as broker, asyncio.timeout(PATIENCE_SECONDS):
        topic = await make_topic(broker, federation)
        async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
            assert isinstance(reader, KafkaReader)
            for number in range(3):
                await producer.send(topic, b"%d" % number)
            for steps in range(12):
                found: list[Record] = []
                while len(found) < 3:
                    found += await reader.poll(0.5)  # of as many as there are: then nothing is left of the fetch
                for _ in range(steps):
                    await asyncio.sleep(0)
                fetches = [task.get_coro() for task in reader._client._fetcher._pending_tasks]
                met = met or any(inspect.getcoroutinestate(fetch) == inspect.CORO_CREATED for fetch in fetches)
                reader.seek(TopicPartition(topic, 0), 0)
    assert met


@pytest.mark.kafka
async def test_fetching_that_has_ended_is_told(kafka: KafkaNode, federation: str) -> None:
    async with connect(kafka.settings()) as broker:
        topic = await make_topic(broker, federation)
        async with broker.reader([topic], start="earliest") as reader:
            assert isinstance(reader, KafkaReader)
            fetching = reader._client._fetcher._fetch_task
            fetching.cancel()
            await asyncio.wait([fetching])
            with pytest.raises(BrokerUnavailable, match="it ended without a word"):
                await reader.poll(0.1)


@pytest.mark.kafka
async def test_a_position_that_retention_has_deleted_is_gone_until_a_seek(kafka: KafkaNode, federation: str) -> None:
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with broker.producer() as producer:
        await producer.send_all(topic, [bytes([number]) for number in range(6)])
    await commit(broker, federation, {at: 2})
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TheirPartition(topic, 0): RecordsToDelete(4)})
    await admin.close()
    async with broker.reader([topic], start="committed", group=federation) as reader:
        with pytest.raises(OffsetGone, match=rf"{federation}\[0\] at 2"):
            await reader.poll(PATIENCE_SECONDS)
        await reader.seek_to_beginning()
        assert values(await take(reader, 2)) == [b"\4", b"\5"]


# A broker that holds a fetch


@pytest.mark.kafka
@pytest.mark.parametrize("partitions", [1, 3])
async def test_nobody_waits_for_the_fetch_that_the_broker_holds(
    kafka: KafkaNode, federation: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may hold it for longer than the test may take, and each look-up and seek is made while it does."""
    monkeypatch.setattr("llmos_stream.broker.kafka.tuning._SHARED_WAIT_MS", 30_000)
    broker = connect(kafka.settings().model_copy(update={"fetch_max_wait_ms": 30_000}))
    topic = await make_topic(broker, federation, partitions)
    places = [TopicPartition(topic, number) for number in range(partitions)]
    async with broker.producer() as producer:
        for at in places:
            await producer.send_all(topic, [b"first", b"second"], partition=at.partition)
        async with asyncio.timeout(PATIENCE_SECONDS), broker.reader([topic], start="latest") as reader:
            assert await reader.poll(0.01) == []
            assert await reader.end_offsets() == dict.fromkeys(places, 2)
            assert await reader.lag() == 0
            for at in places:
                reader.seek(at, 1)
            assert values(await take(reader, partitions)) == [b"second"] * partitions
            assert await reader.poll(0.01) == []
            await reader.seek_to_beginning()
            assert await reader.lag() == 2 * partitions
            assert len(await take(reader, 2 * partitions)) == 2 * partitions
            assert await reader.poll(0.01) == []
            await producer.send(topic, b"third", partition=0)
            assert values(await take(reader, 1)) == [b"third"]


@pytest.mark.kafka
async def test_a_reader_that_opens_knows_who_leads_before_it_asks(
    kafka: KafkaNode, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """aiokafka sleeps before it asks again; readers are opened too often for that."""
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)
    with caplog.at_level(logging.DEBUG, logger="aiokafka.consumer.fetcher"):
        async with broker.reader([topic], start="earliest"):
            pass
    said = [record.message for record in caplog.records]
    assert any("ListOffset" in line for line in said)
    assert not any("wait for metadata refresh" in line for line in said)


@pytest.mark.kafka
async def test_a_producer_that_kafka_refused_says_so_until_another_is_opened(kafka: KafkaNode, federation: str) -> None:
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation, config={"max.message.bytes": "10000"})
    async with broker.producer() as producer:
        for size in (11_000, 1):
            with pytest.raises(RecordTooLarge):
                await producer.send(topic, bytes(size))
    async with broker.producer() as producer:
        await producer.send(topic, b"x")
    assert values(await read_all(broker, topic)) == [b"x"]


@pytest.mark.full
@pytest.mark.kafka
async def test_asking_for_a_topic_makes_none_where_kafka_creates_topics_by_itself(federation: str) -> None:
    need_a_local_kafka()
    eager = LocalKafka(properties={"auto.create.topics.enable": "true"})
    await asyncio.to_thread(eager.start)
    try:
        broker = connect(BrokerSettings(bootstrap_servers=eager.bootstrap_servers))
        there = await make_topic(broker, federation)
        async with broker.producer() as producer:
            with pytest.raises(TopicMissing):
                await producer.send(f"{federation}.missing", b"lost")
        with pytest.raises(TopicMissing):
            async with broker.reader([f"{federation}.missing"], start="earliest"):
                pass
        with pytest.raises(TopicMissing):
            await broker.configure_topic(f"{federation}.missing", {"retention.ms": "1"})
        assert [topic.name for topic in await broker.list_topics(federation)] == [there]
    finally:
        await asyncio.to_thread(eager.stop)


async def test_what_was_set_for_a_topic_is_told_by_the_time_that_it_is_set(
    kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)
    really = AIOKafkaAdminClient.describe_configs
    asked: list[Any] = []

    async def late(admin: AIOKafkaAdminClient, resources: list[Any], include_synonyms: bool = False) -> Any:
        """As a broker answers that has not heard of it yet: twice after what is asked before it is set."""
        answer = await really(admin, resources, include_synonyms)
        asked.append(answer)
        return asked[0] if len(asked) < 4 else answer

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", late)
    await broker.configure_topic(topic, {"retention.ms": "2000000"})
    (info,) = await broker.list_topics(federation)
    assert info.config == {"retention.ms": "2000000"}
    assert len(asked) == 5


# Credentials


def _make_certificate(certificate: Path, key: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.skipif(shutil.which("openssl") is None and not IN_CI, reason="openssl makes the certificate")
async def test_credentials_and_certificates_are_used(kafka: KafkaNode, tmp_path: Path, federation: str) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    _make_certificate(certificate, key)
    (tmp_path / "server.pem").write_text(key.read_text() + certificate.read_text())
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    secured = LocalKafka(
        properties={
            "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(tmp_path / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificate),
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.clients.plain.sasl.jaas.config": f'{login} username="node" password="node-secret" '
            'user_node="node-secret" user_client="client-secret";',
        }
    )
    await asyncio.to_thread(secured.start)
    try:
        settings = BrokerSettings(
            bootstrap_servers=secured.bootstrap_servers,
            security_protocol="SASL_SSL",
            sasl_username="client",
            sasl_password=SecretStr("client-secret"),
            ssl_cafile=certificate,
        )
        broker = connect(settings)
        topic = await make_topic(broker, federation)
        async with broker.producer(federation) as producer:
            await write_one(producer, topic, b"signed in")
        assert values(await read_all(broker, topic)) == [b"signed in"]
        began = time.monotonic()
        for wrong, advice in (({"sasl_password": SecretStr("guess")}, "SASL"), ({"ssl_cafile": None}, "SSL")):
            with pytest.raises(BrokerError, match=advice) as caught:
                await connect(settings.model_copy(update=wrong)).list_topics()
            assert "guess" not in str(caught.value)
            assert not caught.value.retriable
        assert time.monotonic() - began < settings.connect_timeout_seconds
    finally:
        await asyncio.to_thread(secured.stop)
