"""The life of a run on a real Kafka: `aggregator --init`, `--resume`, `finish`, and what other commands make of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos_stream.config import load
from llmos_stream.training import load_task
from tests.cli.aids import Run, Start

pytestmark = pytest.mark.kafka

_QUICK = ("--aggregation.buffer-size", "1", "--json")


@pytest.fixture
def model(tmp_path: Path, on_kafka: str) -> Path:
    """A file for the task, with other weights than it begins with."""
    settings = load({"task": {"entry": "blobs"}})
    state = {
        name: tensor + 0.25 for name, tensor in load_task(settings.task, settings.client).model().state_dict().items()
    }
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    return path


def test_a_run_from_its_beginning_to_its_deletion(
    start: Start, llmos: Run, model: Path, on_kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__WAIT_SECONDS", "0.2")
    done = llmos("finish")
    assert done.status == 5, done

    # It begins with the file, and ends at its limit.
    begun = ("aggregator", *_QUICK, "--init", model)
    roles = [start(*begun, "--stop.max-versions", "2"), start("client"), start("evaluate", "--json")]
    first, client, evaluated = (role.wait() for role in roles)
    assert (first.json()["reason"], first.json()["version"]) == ("max_versions", 2)
    assert (client.status, evaluated.status) == (0, 0), (client, evaluated)
    exported = tmp_path / "version-0.safetensors"
    assert llmos("versions", "export", "0", "--to", exported).status == 0
    assert all(torch.equal(tensor, load_file(model)[name]) for name, tensor in load_file(exported).items())
    said = f"the weights of {model.name} (SHA-256"
    assert said in llmos("versions", "show", "0").out
    assert said in llmos("audit", "0").out
    assert said in llmos("replay").out
    assert llmos("audit", "--json").json()["rule"]["started_from"]["file"] == model.name

    # It does not go on by itself, but under another limit.
    again = llmos(*begun, "--stop.max-versions", "2")
    assert again.status == 1
    assert "go on with it under another limit (as --stop.max-versions) or with --resume" in again.error()
    assert "aggregator --resume goes on with it" in llmos("pause").error()
    aggregator = start(*begun, "--stop.max-versions", "9999")
    aggregator.line("err", "the run goes on from version 2")
    roles = [start("client"), start("evaluate", "--json")]
    roles[1].line("err", "version 3:")
    assert llmos("report", "--json", "--output", tmp_path / "live.html").json()["finished"] is None
    live = llmos("topics", "delete", "--yes")
    assert (live.status, "is live: an aggregator leads it" in live.error()) == (2, True)
    end = llmos("finish", "--json").json()
    assert end["reason"] == "finish"
    assert aggregator.wait().json() == end
    assert all(role.wait().status == 0 for role in roles)
    assert llmos("finish", "--json").json() == end
    assert llmos("report", "--json", "--output", tmp_path / "after.html").json()["finished"] == "finish"

    # Another one begins with its newest version.
    other = ("aggregator", *_QUICK, "--federation.name", f"{on_kafka}-b", "--init-from", on_kafka)
    assert llmos(*other, "--stop.max-seconds", "0.1", "--quiet").json()["version"] == 0
    shown = llmos("versions", "show", "0", "--federation.name", f"{on_kafka}-b", "--json").json()
    newest = llmos("versions", "show", "--json").json()
    assert shown["weights_digest"] == newest["weights_digest"]
    assert shown["rule"]["started_from"]["version"] == newest["number"]

    # Nothing is left of it.
    assert llmos("topics", "delete", "--yes").status == 0
    assert llmos("versions", "list").status == 5
    assert llmos("topics", "list").status == 5


def test_a_file_of_another_model(llmos: Run, model: Path) -> None:
    state = load_file(model)
    name = next(iter(state))
    save_file({**state, name: torch.zeros(1)}, model)
    done = llmos("aggregator", "--init", model)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(f"error: aggregator.init: {name} has shape [1] in {model} and [")


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_demonstration_goes_on(start: Start, llmos: Run, on_kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__MIN_TRAIN_SECONDS", "0.1")
    alone = ("--clients", "1", "--slow", "0", "--late", "0", "--leaving", "0", "--stop.target", "none", "--no-report")
    first = start("demo", "--json", *alone, "--stop.max-versions", "2").wait()
    assert (first.status, first.json()["version"]) == (0, 2), first
    refused = start("demo", "--json", *alone, "--stop.max-versions", "2", "--resume").wait()
    assert refused.status == 1
    assert "change stop.max_versions to go on" in refused.err
    again = start("demo", "--json", *alone, "--stop.max-versions", "4", "--resume").wait()
    found = again.json()
    assert (again.status, found["version"], found["finished"]) == (0, 4, "max_versions"), again
    assert found["updates"] == 4


def test_a_demonstration_that_left_no_log_cannot_go_on(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", raising=False)
    done = llmos("demo", "--resume", "--no-report")
    assert done.status == 2
    assert done.error().startswith("--resume: only a demonstration on a Kafka that stays has left a log")
