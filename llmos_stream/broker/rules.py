"""Checks and sentences that both implementations share, so that people meet the same ones with either."""

from collections.abc import Sequence

from llmos_stream.broker.ports import Start


def check_reader(topics: Sequence[str], start: Start, group: str | None) -> None:
    """Raise ValueError for a reader that makes no sense."""
    if isinstance(topics, str) or not topics or len(set(topics)) != len(topics):
        raise ValueError(f"topics must be a sequence of distinct names, not {topics!r}")
    if start not in {"earliest", "latest", "committed"}:
        raise ValueError(f"start must be earliest, latest or committed, not {start!r}")
    if start == "committed" and group is None:
        raise ValueError("start 'committed' needs a group")


def topic_missing(topic: str) -> str:
    """What TopicMissing says."""
    return f"topic {topic} does not exist; create the federation's topics with `llmos-stream topics create`"


def fenced(transactional_id: str | None) -> str:
    """What Fenced says."""
    return (
        f"another producer has taken over the transactional id {transactional_id}, or the broker gave up a "
        "transaction of it that stayed open too long (LLMOS_BROKER__TRANSACTION_TIMEOUT_SECONDS)"
    )


def not_assigned(topic: str, partition: int) -> str:
    """What an error about a partition that a reader was not given says."""
    return f"{topic}[{partition}] is not one of this reader's partitions"
