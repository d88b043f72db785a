"""Sentences that both implementations share, so that people meet the same ones with either."""


def topic_missing(topic: str) -> str:
    """What TopicMissing says."""
    return f"topic {topic} does not exist; create the federation's topics with `llmos-stream topics create`"


def fenced(transactional_id: str | None) -> str:
    """What Fenced says."""
    return (
        f"another producer has taken over the transactional id {transactional_id}, or the broker gave up a "
        "transaction of it that stayed open too long (LLMOS_BROKER__TRANSACTION_TIMEOUT_SECONDS)"
    )
