"""How topics that somebody else made differ from what would have been made, and what the difference does."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmos_stream.broker.placement import MAX_RECORD_BYTES
from llmos_stream.broker.ports import TopicInfo, TopicSpec

KAFKAS_DEFAULTS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "max.message.bytes": str(MAX_RECORD_BYTES),
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
    "segment.ms": "604800000",
}
"""What holds for a topic that nothing was set for, by the documentation of Kafka 4.1."""
_UNLIMITED = -1
_IN_SYNC = "min.insync.replicas"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about a topic that is not as it would have been made. `harm` says what it does, where it does any."""

    setting: str
    found: str
    wanted: str
    harm: str = ""

    def __str__(self) -> str:
        if self.setting == "partitions":
            said = f"{self.found} partitions, not {self.wanted}"
        else:
            said = f"{self.setting} is {self.found}, not {self.wanted}"
        return f"{said}: {self.harm}" if self.harm else said


def differences(wanted: TopicSpec, found: TopicInfo) -> list[Difference]:
    """What is different, the harmful before the harmless. A topic whose settings this user may not see has none."""
    values = {**found.config, **found.effective}
    all_found = [*_differences(wanted, found.partitions, values), *_too_few_replicas(found)]
    return sorted(all_found, key=lambda difference: not difference.harm)


def policy(wanted: TopicSpec, found: TopicInfo) -> dict[str, str]:
    """What holds for a topic, wherever it was set, of all that matters here. Empty where this user may not see it."""
    names = {*wanted.config, "max.message.bytes", "retention.bytes", "retention.ms"}
    return {name: found.effective[name] for name in sorted(names) if name in found.effective}


def tell_differences(log: logging.Logger, wanted: TopicSpec, found: TopicInfo) -> None:
    """Log what is different: a line for each that does harm, and one for all others."""
    different = differences(wanted, found)
    for difference in different:
        if difference.harm:
            log.error("topic %s: %s; `llmos-stream topics repair` sets it right", found.name, difference)
    if harmless := [str(difference) for difference in different if not difference.harm]:
        log.info("topic %s exists and is left as it is: %s", found.name, "; ".join(harmless))


def _differences(wanted: TopicSpec, partitions: int, values: Mapping[str, str]) -> Iterator[Difference]:
    if partitions != wanted.partitions:
        # Only updates may have several, and then any number will do.
        ordered = wanted.partitions == 1 and partitions > 1 and _in_one_order(wanted)
        harm = "its records have no order any more" if ordered else ""
        yield Difference("partitions", str(partitions), str(wanted.partitions), harm)
    for name, value in wanted.config.items() if values else ():
        if (other := values.get(name)) != value:
            yield Difference(name, other or "not set", value, _harm(name, other or "", value, wanted))
    most = int(values.get("retention.bytes", _UNLIMITED))
    if "retention.bytes" not in wanted.config and most != _UNLIMITED:
        yield Difference("retention.bytes", str(most), str(_UNLIMITED), "records go before they are as old as promised")
    largest = int(values.get("max.message.bytes", MAX_RECORD_BYTES))
    if largest < MAX_RECORD_BYTES:
        harm = "records of wire.chunk_bytes must fit"
        yield Difference("max.message.bytes", str(largest), str(MAX_RECORD_BYTES), harm)


def _too_few_replicas(found: TopicInfo) -> Iterator[Difference]:
    needed = int(found.effective.get(_IN_SYNC, "1"))
    if needed > found.replicas:
        harm = "Kafka before 3.7 takes no record, with so few replicas"
        yield Difference(_IN_SYNC, str(needed), str(found.replicas), harm)


def _in_one_order(wanted: TopicSpec) -> bool:
    """Not `<f>.updates`: a client's lie on one partition by their key. Of the others nobody has asked for several."""
    return not wanted.name.endswith(".updates")


def _harm(name: str, found: str, wanted: str, spec: TopicSpec) -> str:
    by_age = int(spec.config.get("retention.ms", _UNLIMITED)) != _UNLIMITED
    match name:
        case "cleanup.policy" if wanted == "compact":
            return "settings and the place of the newest version are deleted by age, and nobody can join then"
        case "cleanup.policy":
            return "of a message whose records have one key only the last record is kept"
        case "retention.ms":
            return _harm_of_age(int(found or _UNLIMITED), int(wanted), raw=not _in_one_order(spec))
        case "retention.bytes" if by_age:
            return "a flood of them may fill the disk before they are old" if found in {"", "-1"} else ""
        case "retention.bytes" if found in {"", "-1"}:
            return "nothing is ever deleted, until the disk is full"
        case "retention.bytes" if int(found) < int(wanted):
            return "versions may be deleted that others stand on"
        case "message.timestamp.type" if by_age:
            return "a writer whose clock is wrong has its records deleted at once, or never"
    return ""


def _harm_of_age(found: int, wanted: int, *, raw: bool) -> str:
    if wanted == _UNLIMITED:
        return "the newest are deleted too when none comes for so long, and nobody can join then"
    if not raw:
        return ""
    if found == _UNLIMITED or found > wanted:
        return "raw updates, which are personal data, are kept for longer than the settings say"
    return "updates that wait for longer, as in a pause, are lost"
