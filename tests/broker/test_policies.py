"""How topics of somebody else's making differ, and which of that does harm."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmos_stream.broker import TopicInfo, Topics, TopicSpec
from llmos_stream.broker.policies import KAFKAS_DEFAULTS, differences, policy, tell_differences
from llmos_stream.config import TopicSettings

_SPECS = {spec.name.partition(".")[2]: spec for spec in Topics("f").specs(TopicSettings())}


def _found(kind: str, changed: Mapping[str, str], partitions: int = 1) -> TopicInfo:
    """A topic as wanted, but for what is changed."""
    spec = _SPECS[kind]
    values = {**spec.config, **{name.replace("_", "."): value for name, value in changed.items()}}
    return TopicInfo(spec.name, partitions, values, {**KAFKAS_DEFAULTS, **values})


@pytest.mark.parametrize(("needed", "replicas", "does_harm"), [("2", 1, True), ("3", 2, True), ("2", 3, False)])
def test_more_replicas_in_sync_than_there_are_do_harm(needed: str, replicas: int, does_harm: bool) -> None:
    found = replace(_found("models", {"min.insync.replicas": needed}), replicas=replicas)
    said = f"min.insync.replicas is {needed}, not {replicas}: Kafka before 3.7 takes no record, with so few replicas"
    assert [str(one) for one in differences(_SPECS["models"], found)] == [said] * does_harm


@pytest.mark.parametrize("kind", _SPECS)
def test_a_topic_as_wanted_does_not_differ(kind: str) -> None:
    assert differences(_SPECS[kind], _found(kind, {})) == []


@pytest.mark.parametrize(
    ("kind", "changed", "harm"),
    [
        ("control", {"cleanup_policy": "delete"}, "nobody can join"),
        ("control", {"cleanup_policy": "compact,delete"}, "nobody can join"),
        ("models", {"cleanup_policy": "compact"}, "only the last record"),
        ("models", {"retention_ms": "604800000"}, "nobody can join"),
        ("models", {"retention_bytes": "1000"}, "others stand on"),
        ("models", {"retention_bytes": "-1"}, "disk is full"),
        ("models", {"max_message_bytes": "20000"}, "wire.chunk_bytes"),
        ("snapshots", {"retention_ms": "1000"}, "nobody can join"),
        ("updates", {"retention_ms": "-1"}, "personal data"),
        ("updates", {"retention_ms": "1000"}, "are lost"),
        ("updates", {"retention_bytes": "1000"}, "before they are as old"),
        ("updates", {"message_timestamp_type": "CreateTime"}, "clock"),
    ],
)
def test_what_does_harm_says_which(kind: str, changed: dict[str, str], harm: str) -> None:
    (found,) = differences(_SPECS[kind], _found(kind, changed))
    assert harm in found.harm
    assert str(found).startswith(f"{found.setting} is {next(iter(changed.values()))}, not ")


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("models", {"compression_type": "gzip"}),
        ("models", {"retention_bytes": str(1 << 60)}),
        ("events", {"retention_ms": "1000"}),
        ("control", {"segment_ms": "1000"}),
    ],
)
def test_what_does_none_is_not_called_harmful(kind: str, changed: dict[str, str]) -> None:
    (found,) = differences(_SPECS[kind], _found(kind, changed))
    assert found.harm == ""


def test_only_updates_may_have_several_partitions() -> None:
    assert differences(_SPECS["updates"], _found("updates", {}, 3))[0].harm == ""
    assert "order" in differences(_SPECS["control"], _found("control", {}, 3))[0].harm


def test_what_a_broker_has_by_default_is_no_difference_where_it_is_what_is_wanted() -> None:
    plain = TopicInfo("f.control", 1, {}, KAFKAS_DEFAULTS)
    names = {difference.setting for difference in differences(_SPECS["control"], plain)}
    assert "cleanup.policy" in names
    assert "compression.type" not in names


def test_the_harmful_come_first_and_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    spec = _SPECS["models"]
    found = _found("models", {"compression_type": "gzip", "cleanup_policy": "compact", "retention_ms": "1"})
    assert [bool(difference.harm) for difference in differences(spec, found)] == [True, True, False]
    with caplog.at_level(logging.INFO):
        tell_differences(logging.getLogger("here"), spec, found)
    assert [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records] == [
        ("ERROR", "topic f.models"),
        ("ERROR", "topic f.models"),
        ("INFO", "topic f.models exists and is left as it is"),
    ]
    assert "topics repair" in caplog.records[0].getMessage()


def test_of_settings_that_nobody_may_see_nothing_is_said() -> None:
    hidden = TopicInfo("f.control", 1, {})
    assert differences(_SPECS["control"], hidden) == []
    assert policy(_SPECS["control"], hidden) == {}


def test_differences_are_told_in_words() -> None:
    spec = TopicSpec("t.updates", 2, {"a": "1", "b": "2"})
    found = differences(spec, TopicInfo("t.updates", 3, {"a": "5"}))
    assert "; ".join(map(str, found)) == "3 partitions, not 2; a is 5, not 1; b is not set, not 2"
