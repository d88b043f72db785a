"""The API on a real port: answered, drained at the end, and one clear error where the port is taken."""

import asyncio
import logging
import signal
import socket
import threading

import httpx
import pytest
from torch import Tensor

from llmos_stream.errors import ConfigError
from llmos_stream.runtime import Shutdown
from llmos_stream.testing import until
from llmos_stream.web.addresses import ListenAddress, listening
from llmos_stream.web.server import serve_http
from llmos_stream.web.timeouts import ConnectionLimits
from tests.inference.aids import SECONDS, loaded, served

_ASK = {"inputs": [[1.0, 2.0, 3.0]]}
_ANY = ListenAddress("inference", "127.0.0.1", 0)


def _port(caplog: pytest.LogCaptureFixture) -> int | None:
    said = [record.getMessage() for record in caplog.records if "predicting on" in record.getMessage()]
    return int(said[-1].rpartition(":")[2]) if said else None


async def test_what_is_under_way_when_the_stop_comes_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gate, begun, shutdown = threading.Event(), threading.Event(), Shutdown()
    before = signal.getsignal(signal.SIGTERM)

    def wait(inputs: Tensor) -> None:
        begun.set()
        assert gate.wait(SECONDS)

    async with served() as here, httpx.AsyncClient(timeout=SECONDS) as http:
        here.pool.publish(loaded(2, wait))
        serving = asyncio.create_task(serve_http(here.app, _ANY, "predicting", shutdown, SECONDS))
        await until(lambda: _port(caplog) is not None)
        where = f"http://127.0.0.1:{_port(caplog)}/v1"
        assert (await http.get(f"{where}/models")).json()["serving"] == 2
        assert signal.getsignal(signal.SIGTERM) is before
        asked = asyncio.create_task(http.post(f"{where}/predict", json=_ASK))
        await until(begun.is_set)
        shutdown.request()
        async with asyncio.timeout(SECONDS):
            while True:  # until it takes nobody in any more
                try:
                    await http.get(f"{where}/models", headers={"Connection": "close"})
                except httpx.ConnectError:
                    break
                except (httpx.ReadError, httpx.RemoteProtocolError):  # taken in, and closed before it was heard
                    continue
        assert not asked.done()
        gate.set()
        assert (await asked).json()["outputs"] == [[2.0, 4.0, 6.0]]
        async with asyncio.timeout(SECONDS):
            await serving


async def test_a_port_that_is_taken_is_one_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shutdown = Shutdown()
    async with served() as here:
        serving = asyncio.create_task(serve_http(here.app, _ANY, "predicting", shutdown, SECONDS))
        await until(lambda: _port(caplog) is not None)
        taken = ListenAddress("inference", "127.0.0.1", _port(caplog) or 0)
        with pytest.raises(ConfigError, match=r"inference\.port: cannot listen on 127\.0\.0\.1"):
            await serve_http(here.app, taken, "predicting", shutdown, SECONDS)
        shutdown.request()
        await serving


async def test_half_a_request_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shutdown, limits = Shutdown(), ConnectionLimits(head_seconds=0.3, body_seconds=0.3)
    # A connection of its own for each request: one that stays open between two runs into the same limit.
    close = {"Connection": "close"}
    async with served() as here, httpx.AsyncClient(timeout=SECONDS, headers=close) as http:
        here.pool.publish(loaded(2))
        serving = asyncio.create_task(serve_http(here.app, _ANY, "predicting", shutdown, SECONDS, limits=limits))
        await until(lambda: _port(caplog) is not None)
        for half in (b"POST /v1/pre", b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", _port(caplog))
            writer.write(half)
            async with asyncio.timeout(SECONDS):
                assert await reader.read() == b""
            writer.close()
            answer = await http.post(f"http://127.0.0.1:{_port(caplog)}/v1/predict", json=_ASK)
            assert answer.json()["outputs"] == [[2.0, 4.0, 6.0]]
        shutdown.request()
        await serving


def test_an_answer_does_not_wait_for_the_other_sides_acknowledgement() -> None:
    """It goes out in two writes: without this the second one waits 40 ms on Linux."""
    with (
        listening(_ANY) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
