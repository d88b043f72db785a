"""A process: signals drain, a second one forces, errors become one line and a status."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmos_stream.errors import BrokerUnavailable, ConfigError, Fenced, LlmosError, NotFound, OffsetGone, TopicMissing
from llmos_stream.runtime import ExitCode, Shutdown, run_process


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("codec.block: no"), ExitCode.CONFIG),
        (BrokerUnavailable("no broker at 127.0.0.1:1"), ExitCode.UNAVAILABLE),
        (Fenced("taken over"), ExitCode.FENCED),
        (NotFound("version 9 is not in the log"), ExitCode.NOT_FOUND),
        (TopicMissing("there is no topic"), ExitCode.NOT_FOUND),
        (OffsetGone("offset 3"), ExitCode.NOT_FOUND),
        (LlmosError("other"), ExitCode.FAILED),
    ],
)
def test_errors_become_a_line_and_a_status(
    error: LlmosError, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    async def role(shutdown: Shutdown) -> None:
        raise error

    assert run_process(role) == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains(number: signal.Signals) -> None:
    drained = []

    async def role(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), number)
        drained.append(await shutdown.wait())

    assert run_process(role) == ExitCode.DONE
    assert drained == [True]


def test_the_second_signal_forces(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    async def role(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await shutdown.wait()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await Shutdown().wait()
        finally:
            cleaned.append(True)

    assert run_process(role) == ExitCode.FORCED
    assert cleaned == [True]
    assert "before everything was drained" in capsys.readouterr().err


async def test_waiting_for_a_stop_ends_at_the_time_out() -> None:
    shutdown = Shutdown()
    assert await shutdown.wait(0.0) is False
    shutdown.request()
    assert await shutdown.wait(0.0) is True
    assert shutdown.requested


def test_a_stop_that_takes_too_long_is_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    async def role(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await Shutdown().wait()

    assert run_process(role, stop_seconds=0.05) == ExitCode.FORCED
    assert "before everything was drained" in capsys.readouterr().err


def test_a_stop_in_time_is_not_cut_short() -> None:
    async def role(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await shutdown.wait()

    assert run_process(role, stop_seconds=60.0) == ExitCode.DONE


@pytest.mark.parametrize(
    ("status", "waits"), [(ExitCode.FORCED, False), (ExitCode.DONE, True), (ExitCode.FAILED, True)]
)
def test_a_forced_end_waits_for_no_thread(status: ExitCode, waits: bool, tmp_path: Path) -> None:
    """One may hang in a store that is gone; here it reads a pipe that nobody writes to until it is told to go on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from llmos_stream.runtime.process import exit_process\n"
        "say = sys.stdout.write  # a line at once: print writes its end apart, and the two threads get mixed up\n"
        "ThreadPoolExecutor(1).submit(lambda: say(open(sys.argv[1]).read() + chr(10)))\n"
        "say('said before' + chr(10))\n"
        "exit_process(int(sys.argv[2]))\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(pipe), str(int(status))], stdout=subprocess.PIPE, text=True
    )
    try:
        if status != ExitCode.FORCED:
            pipe.write_text("gone on")  # blocks until it is read
        said, _ = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == status
    assert sorted(said.splitlines()) == (["said before"] if status == ExitCode.FORCED else ["gone on", "said before"])
