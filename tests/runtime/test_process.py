"""A process: signals drain, a second one forces, errors become one line and a status."""

import os
import signal

import pytest

from llmos_stream.errors import BrokerUnavailable, ConfigError, Fenced, LlmosError
from llmos_stream.runtime import ExitCode, Shutdown, run_process


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("codec.block: no"), ExitCode.CONFIG),
        (BrokerUnavailable("no broker at 127.0.0.1:1"), ExitCode.UNAVAILABLE),
        (Fenced("taken over"), ExitCode.FENCED),
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
