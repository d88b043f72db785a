"""Prometheus metrics of this process that no event carries.

They are plain objects of the default registry, and the code that they measure writes them. A role without it shows 0.
"""

from collections.abc import Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from llmos_stream.types import TopicKind

_LAG_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

LOOP_LAG = Histogram("llmos_loop_lag_seconds", "How late the event loop came round to a timer.", buckets=_LAG_SECONDS)
BUSY_THREADS = Gauge("llmos_offload_busy_threads", "Threads at work off the event loop.")
FOREIGN = Counter(
    "llmos_foreign_records", "Records passed over because no writer of this federation wrote them.", ("topic",)
)
for _topic in TopicKind:
    FOREIGN.labels(_topic)  # each is there from the start, so that a rate shows its first record


def passed_over() -> Mapping[str, int]:
    """How many records this process has passed over, by topic, where there was any."""
    name = "llmos_foreign_records_total"
    counts = {topic: int(REGISTRY.get_sample_value(name, {"topic": topic}) or 0) for topic in TopicKind}
    return {topic: count for topic, count in counts.items() if count}


UNLISTED = Counter(
    "llmos_unlisted_refusals", "Refused records past the quota of their key: in no event and not in quarantine."
)
RETRIES = Counter("llmos_retries", "Times that work was begun again after trouble, by what was lost.", ("need",))
LEADING = Gauge("llmos_leading", "1 while this aggregator leads, 0 while it stands by.")
LEADERSHIPS = Counter("llmos_leaderships", "Times that this aggregator came to lead.")
PAUSED = Gauge("llmos_paused", "1 while an operator lets the federation rest that this aggregator leads.")
BUFFERED = Gauge("llmos_buffered_updates", "Updates folded into the version that is being made.")
PENDING = Gauge("llmos_pending_messages", "Messages of which some chunks are there and some are not.")
PENDING_BYTES = Gauge("llmos_pending_bytes", "Bytes of these messages, in memory and in the spool file.")
