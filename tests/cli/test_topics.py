"""`llmos-stream topics` on a real Kafka."""

import asyncio
import io

import pytest

from llmos_stream.broker import TopicSpec, connect
from tests.cli.aids import Run
from tests.conftest import KafkaNode

pytestmark = pytest.mark.kafka
_ROOMS = ("control", "evaluations", "events", "locals", "models", "quarantine", "snapshots", "updates")


def test_create_and_list(llmos: Run, on_kafka: str) -> None:
    for form in ([], ["--json"]):
        nothing = llmos("topics", "list", *form)
        assert nothing.status == 5
        assert nothing.error().startswith(
            f"federation {on_kafka} has no topics (llmos-stream topics create makes them)"
        )
        assert "none that this user may see (an ACL must allow Describe)" in nothing.error()

    created = llmos("topics", "create", "--json", "--topics.updates-partitions", "3").json()
    assert [topic["name"] for topic in created] == [f"{on_kafka}.{room}" for room in _ROOMS]
    assert all(topic["created"] for topic in created)
    listed = llmos("topics", "list", "--json", "--topics.updates-partitions", "3").json()
    assert listed == [topic | {"created": False} for topic in created]
    by_room = {topic["name"].rpartition(".")[2]: topic for topic in listed}
    assert by_room["updates"]["partitions"] == 3
    assert by_room["control"]["config"]["cleanup.policy"] == "compact"

    again = llmos("topics", "create")
    assert again.status == 0
    assert again.out.count("was there") == 8
    assert again.out.count("was there, and differs") == 1
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


def test_what_an_admin_made_otherwise_is_told_and_repaired(
    llmos: Run, on_kafka: str, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make() -> None:
        async with connect(kafka.settings()) as broker:
            await broker.create_topics(
                [
                    TopicSpec(f"{on_kafka}.control", 1, {"cleanup.policy": "delete", "segment.ms": "7000000"}),
                    TopicSpec(f"{on_kafka}.models", 1, {"min.insync.replicas": "1"}),
                ]
            )

    asyncio.run(make())
    created = llmos("topics", "create")
    assert created.out.count("now") == 6
    assert created.out.count("was there, and differs") == 2
    harmful = f"topic {on_kafka}.control: cleanup.policy is delete, not compact: "
    assert harmful in created.err
    assert created.err.index("ERROR") < created.err.index("exists and is left as it is")

    listed = llmos("topics", "list")
    assert "cleanup.policy=delete, " in listed.out
    assert "retention.ms=604800000" in listed.out  # the broker's own default, which nobody set
    lines = listed.err.splitlines()
    told = [bool(line.split(": ")[2:]) for line in lines[:-1]]
    assert told == sorted(told, reverse=True)
    assert told[0]
    assert not told[-1]
    assert "topics repair" in lines[-1]

    nobody = llmos("topics", "repair")
    assert (nobody.status, "--yes repairs without asking" in nobody.error()) == (2, True)
    terminal = io.StringIO("no\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    refused = llmos("topics", "repair")
    assert refused.status == 1
    assert f"{on_kafka}.control: cleanup.policy is delete, not compact" in refused.err
    repaired = llmos("topics", "repair", "--yes", "--json").json()["repaired"]
    assert repaired[f"{on_kafka}.control"]["cleanup.policy"] == "compact"
    by_name = {topic["name"]: topic for topic in llmos("topics", "list", "--json").json()}
    assert by_name[f"{on_kafka}.models"]["config"]["min.insync.replicas"] == "1"  # nobody's business here
    assert by_name[f"{on_kafka}.models"]["policy"]["retention.ms"] == "-1"
    assert all(topic["differences"] == [] for topic in by_name.values())
    assert llmos("topics", "repair").out == "nothing to repair\n"


def test_a_federation_whose_name_begins_the_same_is_another(llmos: Run, on_kafka: str) -> None:
    other = f"{on_kafka}.b"
    llmos("topics", "create", "--federation.name", other)
    assert llmos("topics", "list", "--json").status == 5
    assert len(llmos("topics", "list", "--json", "--federation.name", other).json()) == 8


def test_delete_asks_first(llmos: Run, on_kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"{on_kafka}.b"
    for name in (on_kafka, other):
        llmos("topics", "create", "--federation.name", name)
    nobody = llmos("topics", "delete")
    assert (nobody.status, nobody.error()) == (
        2,
        "topics delete asks first, and nobody is at a terminal here: --yes deletes without asking",
    )
    for answer, status, said in (("no\n", 1, ""), ("", 1, ""), (f"{on_kafka}\n", 0, f"deleted {on_kafka}.control, ")):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        assert len(llmos("topics", "list", "--json").json()) == 8
        done = llmos("topics", "delete")
        assert done.status == status
        assert f"every version, update and event of federation {on_kafka}, for good" in done.err
        assert done.out.startswith(said)
    assert llmos("topics", "list").status == 5
    assert llmos("topics", "delete", "--yes").status == 5
    assert len(llmos("topics", "delete", "--yes", "--json", "--federation.name", other).json()["deleted"]) == 8
