"""The eight topics of a federation, with the policies that make the log a system of record."""

import re
from dataclasses import dataclass, field

from llmos_stream.broker.ports import TopicSpec
from llmos_stream.config import NAME_PATTERN, TopicSettings
from llmos_stream.errors import ConfigError
from llmos_stream.types import TopicKind

_HOUR_MS = 3_600_000
_MIB = 1 << 20
_COMMON = {
    # Payloads are compressed before they get here; the broker must not spend time on them.
    "compression.type": "producer",
    # Retention must hang on the broker's clock: a client's may be wrong.
    "message.timestamp.type": "LogAppendTime",
}


@dataclass(frozen=True, slots=True)
class Topics:
    """Names and policies, from the federation's name, which is their prefix. Raises ConfigError on a bad name."""

    federation: str
    updates: str = field(init=False)
    models: str = field(init=False)
    events: str = field(init=False)
    evaluations: str = field(init=False)
    control: str = field(init=False)
    snapshots: str = field(init=False)
    quarantine: str = field(init=False)
    locals: str = field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.federation):
            raise ConfigError(
                f"federation.name: {self.federation!r} must be letters, digits, '.', '_' or '-', at most 128"
            )
        for kind, name in zip(TopicKind, self.names, strict=True):
            object.__setattr__(self, kind, name)

    @property
    def names(self) -> tuple[str, ...]:
        """All eight. A prefix would not do to find them: `a.b` is a federation too."""
        return tuple(f"{self.federation}.{kind}" for kind in TopicKind)

    @property
    def needed(self) -> tuple[str, ...]:
        """Those without which there is no federation: all but that of the models that sites share."""
        return tuple(name for name in self.names if name != self.locals)

    def specs(self, settings: TopicSettings) -> list[TopicSpec]:
        """What to create. Only updates may have more than one partition: the others are read in one order."""
        policies = {
            self.updates: (settings.updates_partitions, _by_age(settings.updates_retention_hours)),
            self.models: (1, _by_size(settings.models_retention_gib)),
            self.events: (1, _by_age(settings.events_retention_hours)),
            self.evaluations: (1, _by_age(settings.evaluations_retention_hours)),
            self.control: (1, _latest_of_each_key()),
            self.snapshots: (1, _by_size(settings.snapshots_retention_gib)),
            self.quarantine: (1, _by_age(settings.quarantine_retention_hours)),
            # Anybody who shares writes whole models there, and no aggregator looks at them: neither age nor size alone
            # would do.
            self.locals: (1, _by_size(settings.locals_retention_gib) | _by_age(settings.locals_retention_hours)),
        }
        return [
            TopicSpec(name, partitions, _COMMON | policy, settings.replication_factor)
            for name, (partitions, policy) in policies.items()
        ]


def _by_age(hours: float) -> dict[str, str]:
    retention = int(hours * _HOUR_MS)
    # Kafka deletes whole segments, by their youngest record: a short segment keeps the promise on time.
    segment = min(max(retention // 8, 60_000), 24 * _HOUR_MS)
    return {"cleanup.policy": "delete", "retention.ms": str(retention), "segment.ms": str(segment)}


def _by_size(gib: float) -> dict[str, str]:
    retention = int(gib * (1 << 30))
    segment = min(max(retention // 8, 16 * _MIB), 1 << 30)
    return {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": str(retention),
        "segment.bytes": str(segment),
    }


def _latest_of_each_key() -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(16 * _MIB),
        "segment.ms": str(_HOUR_MS),
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(24 * _HOUR_MS),
    }
