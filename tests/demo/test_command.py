"""`llmos-stream demo` in one process: what it prints and writes, and how it is stopped."""

import errno
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmos_stream.reporting import wording
from tests.cli.aids import Run, Start
from tests.conftest import IN_CI
from tests.monitoring.collector import collector

_KEYS = {"final_accuracy", "versions", "updates", "bytes_sent", "bytes_raw", "seconds", "broker", "report", "finished"}
_QUICK = ("--task.entry", "blobs", "--client.min-train-seconds", "0")
_TWO = ("--clients", "2", "--slow", "0", "--late", "0", "--leaving", "0")


def _is_a_report(path: Path) -> bool:
    page = path.read_text()
    return page.startswith("<!doctype html>") and page.rstrip().endswith("</html>") and "Federation demo" in page


@pytest.mark.full
@pytest.mark.timeout(180)
def test_the_demo_as_it_is_learns_to_read_digits(llmos: Run, tmp_path: Path) -> None:
    if find_spec("sklearn") is None:
        if IN_CI:
            pytest.fail("CI must run the real demo: scikit-learn is not installed")
        pytest.skip("the demo's digits need scikit-learn: pip install -e '.[demo]'")
    done = llmos("demo", "--json", "--report", tmp_path / "report.html")
    assert done.status == 0, done
    found = done.json()
    assert found["final_accuracy"] >= 0.95
    assert found["clients"] == 8
    assert found["broker"] == "embedded"
    assert found["bytes_sent"] < 0.3 * found["bytes_raw"]
    assert _is_a_report(tmp_path / "report.html")


def test_json_and_the_report(start: Start, tmp_path: Path) -> None:
    done = start("demo", "--json", *_QUICK, *_TWO).wait()
    assert done.status == 0, done
    found = done.json()
    assert found.keys() >= _KEYS
    assert found["finished"] == "target"
    # Versions go on coming until the aggregator hears of the one that reached it.
    assert found["best_accuracy"] >= 0.97
    assert 0.25 < found["final_accuracy"] <= found["best_accuracy"]
    assert found["updates"] >= found["versions"] > 0  # two clients, a buffer of one or two
    assert 0 < found["bytes_sent"] < found["bytes_raw"]
    assert found["seconds"] > 0
    assert (found["broker"], found["report"], found["clients"]) == ("embedded", "report.html", 2)
    assert _is_a_report(tmp_path / "report.html")


def test_the_demo_is_traced_where_a_collector_is_named(llmos: Run) -> None:
    with collector() as collected:
        endpoint = str(collected.settings.endpoint)
        done = llmos("demo", "--json", *_QUICK, *_TWO, "--stop.max-versions", "3", "--tracing.endpoint", endpoint)
        assert done.status == 0, done
        assert {service for service, _ in collected.spans} == {"llmos-demo"}
        assert {"client.update", "aggregator.fold", "aggregator.version", "evaluator.evaluate"} <= set(collected.names)


def test_the_table_fits_80_columns(llmos: Run, tmp_path: Path) -> None:
    report = tmp_path / "new" / "[page].html"
    done = llmos("demo", *_QUICK, *_TWO, "--stop.max-versions", "2", "--report", report)
    assert done.status == 0, done
    *table, last = done.out.splitlines()
    assert max(map(len, table)) <= 80
    names = [line.split()[0] for line in table]
    assert names[0] == "finished"
    assert {"accuracy", "versions", "updates", "uploaded", "clients"} <= set(names)
    assert last == f"wrote {report}: open it in a browser"
    assert _is_a_report(report)


@pytest.mark.full
def test_ctrl_c_ends_it_with_what_there_is(start: Start, tmp_path: Path) -> None:
    endless = ("--stop.target", "none", "--stop.patience", "none", "--stop.max-seconds", "none")
    demo = start("demo", "--json", *_QUICK, *_TWO, *endless, "--report", "page.html", new=True)
    while demo.line("err", "version ").split()[1].strip(",") in (wording.or_dash(None), "0"):
        pass
    demo.signal(signal.SIGINT)
    done = demo.wait()
    assert done.status == 0, done
    assert "Traceback" not in done.err
    found = done.json()
    assert found["finished"] is None
    assert found["versions"] >= 1
    assert found["updates"] >= 1
    assert _is_a_report(tmp_path / "page.html")


def test_an_environment_meant_for_kafka_does_not_reach_the_embedded_demo(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("LLMOS_CLIENT__SHARD", "7")
    done = llmos(
        "demo",
        "--broker",
        "embedded",
        *_QUICK,
        *_TWO,
        "--stop.max-versions",
        "1",
        "--json",
        "--report",
        tmp_path / "r.html",
    )
    assert done.status == 0, done
    assert done.json()["broker"] == "embedded"


def test_a_kafka_that_stays_gets_a_new_federation_each_time(llmos: Run, nobody: str, tmp_path: Path) -> None:
    flags = ("--broker.bootstrap-servers", nobody, "--broker.connect-timeout-seconds", "0.1")
    done = llmos("demo", *flags, "--report", tmp_path / "report.html")
    first, second = done.err.splitlines()
    name = first.split()[1].removesuffix(";")
    assert name.startswith("demo-20")
    assert first.endswith(f"llmos-stream versions list --federation.name {name}")
    assert second.startswith(f"error: no Kafka answers at {nobody}")
    # A name that was asked for is taken as it is.
    done = llmos("demo", *flags, "--federation.name", "demo", "--report", tmp_path / "report.html")
    assert done.status == 3
    assert done.error().startswith(f"no Kafka answers at {nobody}")


def test_a_report_that_cannot_be_written_is_refused_before_the_work(llmos: Run, tmp_path: Path) -> None:
    done = llmos("demo", "--report", tmp_path)
    assert (done.status, done.error()) == (2, f"--report: {tmp_path} is a folder")


def test_a_report_in_a_folder_that_cannot_be_written_is_refused_before_the_work(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "new" / "report.html"
    done = llmos("demo", "--report", path)
    assert done.status == 2
    assert done.error() == f"--report: cannot write {path}: Not a directory"
    assert llmos("demo", "--report", "/proc/report.html").error().startswith("--report: cannot write /proc/report.html")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_report_that_turns_out_not_to_be_writable_costs_the_report_alone(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    path = tmp_path / "report.html"
    done = llmos("demo", *_QUICK, *_TWO, "--stop.max-versions", "1", "--json", "--report", path)
    assert done.status == 1
    assert done.json()["versions"] == 1
    assert done.err.endswith(f"error: --report: cannot write {path}: No space left on device\n")


def test_the_demo_goes_without_a_report(llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = llmos("demo", *_QUICK, *_TWO, "--stop.max-versions", "1", "--json", "--no-report")
    assert (done.status, done.json()["report"]) == (0, None)
    assert not list(tmp_path.iterdir())


def test_a_task_that_cannot_be_loaded_is_one_line(llmos: Run, tmp_path: Path) -> None:
    done = llmos("demo", "--task.entry", "nowhere:make", "--report", tmp_path / "report.html")
    assert done.status == 1
    assert done.error().startswith("task.entry 'nowhere:make': there is no module nowhere (looked in ")
    assert not (tmp_path / "report.html").exists()
