"""`llmos-stream inspect`: records of each topic on a real Kafka, and files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_stream.codec import encode
from llmos_stream.wire import pack_prelude
from tests.cli.aids import Run
from tests.cli.logged import STRANGE, Logged
from tests.roles.aids import FLOAT32, NUMEL, update, update_head

_PAYLOAD = list(encode(torch.zeros(NUMEL), FLOAT32))
_PRELUDE = pack_prelude(update_head(_PAYLOAD, metrics={"loss": 0.25}))


def _inspect(llmos: Run, *arguments: object) -> Any:
    done = llmos("inspect", *arguments, "--json")
    assert done.status == 0, done
    return done.json()


@pytest.mark.kafka
def test_updates(llmos: Run, logged: Logged) -> None:
    found = _inspect(llmos, "updates")
    assert (found["topic"], found["partition"]) == (f"{logged.federation}.updates", 0)
    assert (found["offset"], found["key"]) == (logged.first, "a")
    assert found["chunk"].items() >= {"index": 0, "count": 1}.items()
    head = found["head"]
    assert (head["kind"], head["client_id"], head["sequence"], head["codec"]) == ("update", "a", 5, "float32")
    second = _inspect(llmos, "updates", "--offset", logged.first + 1)
    assert second["head"]["client_id"] == second["key"] == "b"


@pytest.mark.kafka
def test_chunks_of_one_message(llmos: Run, logged: Logged) -> None:
    first = _inspect(llmos, "updates", "--offset", logged.chunked)
    assert first["head"]["metrics"] == {"loss": 0.5}
    assert first["chunk"]["count"] > 1
    second = _inspect(llmos, "updates", "--offset", logged.chunked + 1)
    assert second["chunk"] == first["chunk"] | {"index": 1}
    assert (second["head"], second["note"]) == (None, "only a message's first chunk has its head")


@pytest.mark.kafka
def test_what_a_stranger_wrote_is_shown_with_its_place(llmos: Run, logged: Logged) -> None:
    found = _inspect(llmos, "updates", "--offset", logged.rubbish)
    assert (found["offset"], found["key"], found["bytes"]) == (logged.rubbish, STRANGE, 14)
    assert found["note"].startswith("neither a chunk")
    for_people = llmos("inspect", "updates", "--offset", logged.rubbish)
    assert for_people.status == 0
    assert '"[/b]\\u001b[2J"' in for_people.out


@pytest.mark.kafka
def test_models_events_control_quarantine(llmos: Run, logged: Logged) -> None:
    model = _inspect(llmos, "models")
    assert (model["key"], model["head"]["kind"], model["head"]["number"]) == ("0", "full version", 0)
    assert _inspect(llmos, "models", "--offset", 1)["head"]["number"] == 1  # over the mark of a transaction's end
    event = _inspect(llmos, "events")
    assert (event["value"]["kind"], event["value"]["data"]["version"]) == ("version_published", 0)
    control = _inspect(llmos, "control")
    assert (control["key"], control["value"]["term"]) == ("aggregator", 1)  # before anything else, it says who leads
    entries = [_inspect(llmos, "quarantine", "--offset", offset) for offset in (0, 1)]
    reasons = {(entry["key"], entry["value"]["offset"]): entry["value"]["reason"] for entry in entries}
    assert reasons == {(STRANGE, logged.rubbish): "malformed", ("d", logged.rubbish + 1): "not_finite"}


@pytest.mark.kafka
def test_snapshots(llmos: Run, logged: Logged) -> None:
    """A delta version leaves a residual."""
    assert _inspect(llmos, "snapshots")["head"].items() >= {"kind": "snapshot", "version": 1}.items()


@pytest.mark.kafka
def test_the_newest_records(llmos: Run, logged: Logged) -> None:
    newest = _inspect(llmos, "updates", "--last", 1)
    assert (newest["offset"], newest["key"]) == (logged.rubbish + 1, "d")
    for_scripts = llmos("inspect", "models", "--last", 2, "--json").out.splitlines()
    assert [json.loads(line)["key"] for line in for_scripts] == ["0", "1"]  # over the marks of transactions' ends
    assert llmos("inspect", "models", "--last", 1000, "--json").out.splitlines() == for_scripts


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "--offset", "1000"], "{0}.models has no record at or after offset 1000 in partition 0"),
        (["models", "--offset", "3"], "{0}.models has no record at or after offset 3 in partition 0"),
        (["models", "--offset", "-1"], "--offset: -1 is below 0"),
        (["models", "--last", "0"], "--last: 0 is below 1"),
        (["models", "--partition", "1"], "--partition: {0}.models has 1, counted from 0, not 1"),
        (["models", "--partition", "-1"], "--partition: {0}.models has 1, counted from 0, not -1"),
    ],
)
def test_a_record_that_is_not_there(llmos: Run, logged: Logged, arguments: list[str], said: str) -> None:
    done = llmos("inspect", *arguments)
    assert done.status == (2 if "below" in said else 5)
    assert done.error() == said.format(logged.federation)


@pytest.mark.parametrize(
    "data", [update(torch.zeros(NUMEL))[0], b"".join([_PRELUDE, *_PAYLOAD])], ids=["record", "frame"]
)
def test_a_file(llmos: Run, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "update.bin"
    file.write_bytes(data)
    found = _inspect(llmos, file)
    assert found["bytes"] == len(data)
    assert found["head"]["payload_digest"] == update_head(_PAYLOAD).payload_digest.hex()
    for_people = llmos("inspect", file)
    assert for_people.status == 0
    assert '"client_id": "a"' in for_people.out


def test_a_file_of_json(llmos: Run, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_text('{"kind": "update_sent"}')
    assert _inspect(llmos, file) == {"value": {"kind": "update_sent"}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "there is nothing in it"),
        (b"hello", "neither a chunk (a record of 5 bytes is no chunk) nor a frame (not a frame: it does not start"),
        (b"\xff" * 300, "neither a chunk (not a chunk: the record does not start with a chunk's header) nor a frame"),
        (b"{not json", "neither a chunk"),
        (_PRELUDE[:3], "a frame that is cut off before the end of its head"),
        (_PRELUDE[:-9], "a frame that is cut off before the end of its head"),
    ],
    ids=["empty", "short", "rubbish", "half json", "cut early", "cut late"],
)
def test_a_file_of_something_else(llmos: Run, tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(data)
    done = llmos("inspect", file)
    assert done.status == 2
    assert done.error().startswith(f"{file}: {said}")


def test_a_file_that_cannot_be_read_and_a_topic_that_does_not_exist(llmos: Run, tmp_path: Path) -> None:
    for path, reason, status in ((tmp_path / "missing", "No such file", 5), (tmp_path, "Is a directory", 2)):
        done = llmos("inspect", path)
        assert done.status == status
        assert done.error().startswith(f"cannot read {path}: {reason}")
        assert "updates, models, events, evaluations, control, snapshots, quarantine" in done.error()
