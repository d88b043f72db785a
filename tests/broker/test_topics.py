import pytest

from llmos_stream.broker import Topics, TopicSpec
from llmos_stream.config import TopicSettings
from llmos_stream.errors import ConfigError

HOUR = 3_600_000


def _policies(settings: TopicSettings) -> dict[str, TopicSpec]:
    return {spec.name: spec for spec in Topics("fed").specs(settings)}


def test_names_start_with_the_federation() -> None:
    assert Topics("fed").names == (
        "fed.updates",
        "fed.models",
        "fed.events",
        "fed.evaluations",
        "fed.control",
        "fed.snapshots",
        "fed.quarantine",
        "fed.locals",
    )


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "x" * 129])
def test_a_name_that_kafka_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.name"):
        Topics(name)


def test_only_updates_have_several_partitions() -> None:
    policies = _policies(TopicSettings(updates_partitions=7, replication_factor=3))
    assert {name: spec.partitions for name, spec in policies.items()} == dict.fromkeys(Topics("fed").names, 1) | {
        "fed.updates": 7
    }
    assert {spec.replication_factor for spec in policies.values()} == {3}


def test_personal_data_goes_on_time() -> None:
    config = _policies(TopicSettings(updates_retention_hours=2))["fed.updates"].config
    assert config["cleanup.policy"] == "delete"
    assert int(config["retention.ms"]) == 2 * HOUR
    # The oldest record of a segment waits for its youngest to be old enough.
    assert int(config["segment.ms"]) <= 2 * HOUR / 8
    assert config["message.timestamp.type"] == "LogAppendTime"


def test_models_that_sites_share_go_by_age_and_by_size() -> None:
    config = _policies(TopicSettings(locals_retention_hours=2, locals_retention_gib=0.5))["fed.locals"].config
    assert (config["retention.ms"], config["retention.bytes"]) == (str(2 * HOUR), str(1 << 29))
    assert (config["segment.ms"], config["segment.bytes"]) == (str(2 * HOUR // 8), str(1 << 26))


def test_versions_go_by_size_alone() -> None:
    config = _policies(TopicSettings(models_retention_gib=0.5))["fed.models"].config
    assert config["retention.ms"] == "-1"
    assert int(config["retention.bytes"]) == 1 << 29
    assert int(config["segment.bytes"]) == 1 << 26


def test_snapshots_go_by_a_size_of_their_own() -> None:
    config = _policies(TopicSettings(snapshots_retention_gib=0.25))["fed.snapshots"].config
    assert (config["retention.ms"], config["retention.bytes"]) == ("-1", str(1 << 28))


def test_control_keeps_the_latest_of_each_key() -> None:
    assert _policies(TopicSettings())["fed.control"].config["cleanup.policy"] == "compact"


def test_events_evaluations_and_quarantine_have_their_own_ages() -> None:
    settings = TopicSettings(events_retention_hours=1, evaluations_retention_hours=2, quarantine_retention_hours=3)
    policies = _policies(settings)
    assert policies["fed.evaluations"].config["retention.ms"] == str(2 * HOUR)
    assert policies["fed.events"].config["retention.ms"] == str(HOUR)
    assert policies["fed.quarantine"].config["retention.ms"] == str(3 * HOUR)
