"""How aiokafka's errors and complaints come out."""

import logging

import aiokafka.errors as theirs
import pytest
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.metadata import MetadataResponse_v0

from llmos_stream.broker.kafka.connection import Connection
from llmos_stream.broker.kafka.quiet import calm_aiokafka, collected_reasons
from llmos_stream.broker.kafka.translate import translate
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import (
    BrokerError,
    BrokerUnavailable,
    Fenced,
    OffsetGone,
    RecordTooLarge,
    TopicMissing,
    TransactionAborted,
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (theirs.ProducerFenced(), Fenced),
        (theirs.InvalidProducerEpoch(), Fenced),
        (theirs.MessageSizeTooLargeError(), RecordTooLarge),
        (theirs.RecordListTooLargeError(), RecordTooLarge),
        (theirs.UnknownTopicOrPartitionError(), TopicMissing),
        (theirs.OffsetOutOfRangeError({TheirPartition("t", 0): 5}), OffsetGone),
        (theirs.InvalidTxnState(), TransactionAborted),
        (theirs.OutOfOrderSequenceNumber(), TransactionAborted),
        (theirs.KafkaConnectionError("refused"), BrokerUnavailable),
        (theirs.KafkaTimeoutError(), BrokerUnavailable),
        (theirs.NotEnoughReplicasError(), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (ConnectionResetError(), BrokerUnavailable),
        (theirs.TopicAuthorizationFailedError("t"), BrokerError),
        (theirs.KafkaError("anything else"), BrokerError),
    ],
)
def test_every_error_gets_its_name_here(error: Exception, kind: type[BrokerError]) -> None:
    translated = translate(error, "host:1", topic="t", producer="id")
    assert type(translated) is kind
    assert translated.retriable == (kind in {BrokerUnavailable, TransactionAborted})


def test_what_aiokafka_wraps_counts() -> None:
    def wrapped(error: Exception) -> Exception:
        for text in (repr(error), "Unexpected error during batch delivery"):
            outer = theirs.KafkaError(text)
            outer.__cause__, error = error, outer
        return error

    broken = translate(wrapped(theirs.KafkaConnectionError("closed")), "host:1", producer="id")
    assert type(broken) is BrokerUnavailable
    assert "closed" in str(broken)
    assert type(translate(wrapped(theirs.ProducerFenced()), "host:1", producer="id")) is Fenced
    bug = translate(wrapped(ValueError("a bug")), "host:1", producer="id")
    assert type(bug) is BrokerError
    assert "a bug" in str(bug)


def test_messages_say_where_and_what_to_do() -> None:
    assert "t[3] at 7" in str(translate(theirs.OffsetOutOfRangeError({TheirPartition("t", 3): 7}), "host:1"))
    assert "host:1" in str(translate(theirs.KafkaConnectionError("x"), "host:1"))
    assert "ACLs" in str(translate(theirs.GroupAuthorizationFailedError("g"), "host:1"))
    assert "topics create" in str(translate(theirs.UnknownTopicOrPartitionError(), "host:1", topic="t"))
    assert "of t: fewer of its replicas are in sync" in str(
        translate(theirs.NotEnoughReplicasError(), "host:1", topic="t")
    )
    assert "TRANSACTION_TIMEOUT" in str(translate(theirs.ProducerFenced(), "host:1", producer="id"))


async def test_a_broker_that_is_not_met_where_it_wants_to_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster answers at its first address, and names another one for its broker."""

    async def start(client: AIOKafkaAdminClient) -> None:
        client._client.cluster.update_metadata(MetadataResponse_v0([(1, "kafka-0.invalid", 9092)], []))

    monkeypatch.setattr(AIOKafkaAdminClient, "start", start)
    kafka = Connection(BrokerSettings(bootstrap_servers="localhost:9092"))
    with pytest.raises(BrokerUnavailable, match=r"localhost:9092 .* advertised\.listeners: kafka-0\.invalid:9092"):
        async with kafka.admin():
            raise theirs.NodeNotReadyError("node id 1")


def test_errors_of_ours_pass_unchanged() -> None:
    error = OffsetGone("here")
    assert translate(error, "host:1") is error


def test_what_aiokafka_retries_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    calm_aiokafka()
    calm_aiokafka()
    log = logging.getLogger("aiokafka.consumer.fetcher")
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            log.error("a complaint of this test about %s", "node")
            log.info("Discovered coordinator %s", 1)
            log.warning("Got error produce response on topic-partition %s, retrying. Error: %s", 1, 2)
        log.error("another complaint of this test")
    assert [record.getMessage() for record in caplog.records] == [
        "a complaint of this test about node",
        "another complaint of this test",
    ]


def test_reasons_of_failed_first_connections_are_collected_instead(caplog: pytest.LogCaptureFixture) -> None:
    calm_aiokafka()
    log = logging.getLogger("aiokafka")
    error = OSError("refused")
    with collected_reasons() as reasons:
        log.error('Unable connect to "%s:%s": %s', "host", 1, error)
    assert reasons == [error]
    assert caplog.records == []


def test_a_bug_in_aiokafka_is_always_shown(caplog: pytest.LogCaptureFixture) -> None:
    calm_aiokafka()
    log = logging.getLogger("aiokafka.producer.sender")
    for _ in range(2):
        try:
            raise KeyError
        except KeyError:
            log.exception("Unexpected error in sender routine")
    assert len(caplog.records) == 2
