"""aiokafka's errors in this package's terms."""

import aiokafka.errors as theirs

from llmos_stream.broker.rules import fenced, topic_missing
from llmos_stream.errors import (
    BrokerError,
    BrokerUnavailable,
    Fenced,
    OffsetGone,
    RecordTooLarge,
    TopicMissing,
    TransactionAborted,
)

AIOKAFKA_ERRORS = (theirs.KafkaError, theirs.IllegalOperation, theirs.ConsumerStoppedError, TimeoutError, OSError)
"""What calls into aiokafka raise when something between here and the broker is wrong."""

_NO_ANSWER = (TimeoutError, OSError, theirs.KafkaTimeoutError)
_REFUSED = (
    theirs.TopicAuthorizationFailedError,
    theirs.GroupAuthorizationFailedError,
    theirs.ClusterAuthorizationFailedError,
    theirs.TransactionalIdAuthorizationFailed,
)
_TRANSACTION_LOST = (
    theirs.InvalidTxnState,
    theirs.InvalidProducerIdMapping,
    theirs.OutOfOrderSequenceNumber,
    theirs.UnknownProducerId,
)


def translate(
    error: BaseException, address: str, *, topic: str | None = None, producer: str | None = None
) -> BrokerError:
    """The error to raise in its place; `topic` and `producer` (a transactional id) say what was going on."""
    while type(error) is theirs.KafkaError and error.__cause__ is not None:
        # What ends aiokafka's sending task comes wrapped, and what it wraps may pass: a connection that broke off
        # while it asked who coordinates the transaction.
        error = error.__cause__
    said = f"{type(error).__name__}: {error}"
    translated: BrokerError
    match error:
        case BrokerError():
            translated = error
        case theirs.ProducerFenced() | theirs.InvalidProducerEpoch():
            translated = Fenced(fenced(producer))
        case theirs.MessageSizeTooLargeError() | theirs.RecordListTooLargeError():
            translated = RecordTooLarge(
                f"the broker refused a record for {topic}: lower wire.chunk_bytes (LLMOS_WIRE__CHUNK_BYTES), or have "
                f"max.message.bytes of the topic raised ({said})"
            )
        case theirs.UnknownTopicOrPartitionError() if topic is not None:
            translated = TopicMissing(topic_missing(topic))
        case theirs.OffsetOutOfRangeError():
            translated = OffsetGone(f"deleted by retention, or never written: {_places(error)}")
        case _ if isinstance(error, _REFUSED):
            translated = BrokerError(
                f"Kafka at {address} does not permit this; `llmos-stream docs kafka` lists the ACLs of each role "
                f"({said})"
            )
        case _ if producer is not None and isinstance(error, _TRANSACTION_LOST):
            translated = TransactionAborted(f"Kafka at {address} gave up the transaction; open a new producer ({said})")
        case theirs.NotEnoughReplicasError() if topic is not None:
            translated = BrokerUnavailable(
                f"Kafka at {address} takes no record of {topic}: fewer of its replicas are in sync than its "
                "min.insync.replicas asks for; start the brokers that are away, or have that lowered"
            )
        case _ if isinstance(error, _NO_ANSWER) or getattr(error, "retriable", False):
            translated = BrokerUnavailable(f"no answer from Kafka at {address} ({said})")
        case _:
            translated = BrokerError(f"Kafka at {address}: {said}")
    return translated


def _places(error: theirs.OffsetOutOfRangeError) -> str:
    at = error.args[0] if error.args else {}
    return ", ".join(f"{place.topic}[{place.partition}] at {offset}" for place, offset in dict(at).items())
