"""`llmos-stream archive` and what `versions` knows of the registry, on a real Kafka."""

import asyncio
import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmos_stream.broker import connect
from llmos_stream.config import load
from llmos_stream.registry import open_store
from tests.cli.aids import Run, Running, Start
from tests.cli.logged import write_log
from tests.conftest import KafkaNode

pytestmark = pytest.mark.kafka


@pytest.fixture
def registry(kafka: KafkaNode, on_kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A federation of its own with versions 0 and 1 in the log, and a registry that the environment names."""
    asyncio.run(write_log(kafka, on_kafka))
    monkeypatch.setenv("LLMOS_REGISTRY__URL", f"file://{tmp_path / 'models'}")
    return tmp_path / "models" / on_kafka


def test_promote_list_and_rollback(llmos: Run, registry: Path) -> None:
    assert not any(row["promoted"] for row in llmos("versions", "list", "--json").json())
    done = llmos("versions", "rollback")
    assert done.status == 5
    assert done.error().startswith("there is nothing to go back to: nothing is promoted")

    done = llmos("versions", "promote", "1")
    assert (done.status, done.out) == (0, "version 1 is promoted\n")
    now = llmos("versions", "promote", "0", "--json").json()
    assert (now["version"], now["history"]) == (0, [1])
    assert llmos("versions", "promote", "0").out == "version 0 is promoted; `versions rollback` goes back to 1\n"
    rows = llmos("versions", "list", "--json").json()
    assert [row["promoted"] for row in rows] == [True, False]
    lines = llmos("versions", "list").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert (lines[1].startswith("0 * "), lines[2].startswith("1   "), lines[3]) == (True, True, "* promoted")

    assert llmos("versions", "rollback", "--json").json()["version"] == 1
    done = llmos("versions", "rollback")
    assert done.status == 5
    assert "version 1 is the first one promoted" in done.error()


def test_what_makes_no_sense(llmos: Run, registry: Path) -> None:
    for arguments, said, status in (
        (["promote"], "promote needs the number of a version", 2),
        (["rollback", "1"], "rollback goes to the version promoted before", 2),
        (["promote", "99"], "version 99 is neither in the log nor in the registry", 5),
        (["promote", "99", "--registry.url", "none"], "version 99 is not in the log; name the registry", 5),
        (["export", "99"], "version 99 is not in the log, which holds 0 to 1; the registry holds none", 5),
        (["export", "99", "--registry.url", "none"], "version 99 is not in the log, which holds 0 to 1", 5),
    ):
        done = llmos("versions", *arguments)
        assert done.status == status
        assert done.error().startswith(said)
    done = llmos("archive", "--registry.url", "none")
    assert done.status == 2
    assert done.error().startswith("registry.url: say where versions are archived")


def _stop_once_archived(running: Running, version: int) -> str:
    running.line("err", f"version {version} is archived (")
    running.signal(signal.SIGTERM)
    done = running.wait()
    assert done.status == 0, done
    return done.out


def test_a_version_that_the_log_no_longer_has_is_exported_from_the_registry(
    llmos: Run, start: Start, registry: Path, tmp_path: Path, kafka: KafkaNode, on_kafka: str
) -> None:
    from_log = llmos("versions", "export", "1", "--to", tmp_path / "log.safetensors", "--json").json()
    out = _stop_once_archived(start("archive", "--registry.every", 1), 1)
    assert out == "2 versions archived, the last one 1\n"

    async def forget() -> None:
        async with connect(kafka.settings()) as broker:
            await broker.delete_topics([topic.name for topic in await broker.list_topics(f"{on_kafka}.")])

    asyncio.run(forget())
    to = tmp_path / "registry.safetensors"
    done = llmos("versions", "export", "--to", to)
    assert (done.status, done.out) == (0, f"wrote version 1, 2 tensors, from the registry to {to}\n")
    assert llmos("versions", "export", "1", "--to", to, "--json").json() == from_log | {"file": str(to)}
    assert to.read_bytes() == (tmp_path / "log.safetensors").read_bytes()
    assert load_file(to).keys() == {"w", "b"}

    model = registry / "00000001" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    done = llmos("versions", "export", "1", "--to", tmp_path / "damaged.safetensors")
    assert done.status == 1
    assert "its SHA-256 differs" in done.error()
    assert not list(tmp_path.glob("damaged*"))
    done = llmos("versions", "export", "7")
    assert done.status == 5
    assert done.error().endswith("the registry holds 0, 1")


def test_archive_keeps_what_is_promoted_and_stops_in_order(llmos: Run, start: Start, registry: Path) -> None:
    running = start("archive", "--registry.keep", "promoted", "--json", new=True)
    assert llmos("versions", "promote", "1").status == 0
    assert json.loads(_stop_once_archived(running, 1)) == {"archived": [1]}
    settings = load()
    entry, _ = open_store(settings.registry, settings.federation.name).load(1)
    assert [item["client_id"] for item in entry.head["manifest"]] == ["a", "b"]
    assert sorted(path.name for path in registry.iterdir()) == ["00000001"]
