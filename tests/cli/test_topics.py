"""`llmos-stream topics` on a real Kafka."""

import pytest

from tests.cli.aids import Run

pytestmark = pytest.mark.kafka
_ROOMS = ("control", "events", "models", "quarantine", "snapshots", "updates")


def test_create_and_list(llmos: Run, on_kafka: str) -> None:
    for form in ([], ["--json"]):
        nothing = llmos("topics", "list", *form)
        assert nothing.status == 5
        assert nothing.error().startswith(f"federation {on_kafka} has no topics, or none that this user may see: ")

    created = llmos("topics", "create", "--json", "--topics.updates-partitions", "3").json()
    assert [topic["name"] for topic in created] == [f"{on_kafka}.{room}" for room in _ROOMS]
    assert all(topic["created"] for topic in created)
    listed = llmos("topics", "list", "--json").json()
    assert listed == [topic | {"created": False} for topic in created]
    by_room = {topic["name"].rpartition(".")[2]: topic for topic in listed}
    assert by_room["updates"]["partitions"] == 3
    assert by_room["control"]["config"]["cleanup.policy"] == "compact"

    again = llmos("topics", "create")
    assert again.status == 0
    assert again.out.count("was there") == 6
    assert "now" not in again.out.split()
    # It differs from what would be created now: said, and left alone.
    assert f"topic {on_kafka}.updates exists and is left as it is: 3 partitions, not 1" in again.err


def test_the_tables(llmos: Run, on_kafka: str) -> None:
    created, listed = llmos("topics", "create"), llmos("topics", "list")
    for done in (created, listed):
        assert (done.status, done.err) == (0, "")
        assert "…" not in done.out
    assert [line.split()[0] for line in listed.out.splitlines()] == ["topic", *(f"{on_kafka}.{r}" for r in _ROOMS)]
    assert [line.split() for line in created.out.splitlines()] == [
        ["topic", "partitions", "created"],
        *([f"{on_kafka}.{room}", "1", "now"] for room in _ROOMS),
    ]
    assert "cleanup.policy=compact" in listed.out
    assert "message.timestamp.type=LogAppendTime" in listed.out


def test_a_federation_whose_name_begins_the_same_is_another(llmos: Run, on_kafka: str) -> None:
    other = f"{on_kafka}.b"
    llmos("topics", "create", "--federation.name", other)
    assert llmos("topics", "list", "--json").status == 5
    assert len(llmos("topics", "list", "--json", "--federation.name", other).json()) == 6
