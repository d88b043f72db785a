"""Sentences that both implementations share, so that people meet the same ones with either."""


def topic_missing(topic: str) -> str:
    """What TopicMissing says: who has no rights sees no difference to a topic that was deleted."""
    return (
        f"there is no topic {topic}: it was never made, or was deleted, or this user may not see it (Describe); "
        "`llmos-stream topics create` makes what is missing"
    )


def partition_missing(topic: str, partition: int) -> str:
    """What TopicMissing says of a topic that was made anew with fewer partitions."""
    return f"partition {partition} of topic {topic} is gone: the topic was deleted and made anew; start this again"


def fenced(transactional_id: str | None) -> str:
    """What Fenced says."""
    return (
        f"another producer has taken over the transactional id {transactional_id}, or the broker gave up a "
        "transaction of it that stayed open too long (LLMOS_BROKER__TRANSACTION_TIMEOUT_SECONDS)"
    )
