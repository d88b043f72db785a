"""The stack, brought up once for the tests that use it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from _pytest.capture import CaptureManager

from tests.docker import images
from tests.docker.engine import Engine, engine
from tests.docker.needs import require
from tests.docker.stack import COMPOSE, ROLES, SMALL, THREE_BROKERS, WATCH, Stack
from tests.docker.waiting import Say, timed

_ON_THE_BASE = (images.make_app, images.make_kafka, images.make_prometheus)


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Say:
    """A line for whoever watches, shown whatever the tests come to."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert isinstance(capture, CaptureManager)

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\ncontainers: {text}", end="", flush=True)

    return line


@pytest.fixture(scope="package")
def built(say: Say) -> Iterator[Engine]:
    """An engine with all images."""
    require()
    with ExitStack() as held:
        held.enter_context(timed(say, "everything"))
        folder = held.enter_context(TemporaryDirectory(prefix="llmos-containers-", ignore_cleanup_errors=True))
        found = held.enter_context(engine(Path(folder)))
        with timed(say, "base image"):
            images.make_base(found)
        with timed(say, "our image and the stand-ins"), ThreadPoolExecutor() as side_by_side:
            builds = [side_by_side.submit(make, found) for make in _ON_THE_BASE]
            for build in builds:
                build.result()
        yield found


@pytest.fixture(scope="module")
def stack(built: Engine, say: Say, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The whole stack of `docker/compose.yaml` but Grafana, whose image cannot be had everywhere; all healthy."""
    with _up(Stack(built, "llmos-test", COMPOSE, SMALL), ["kafka", *ROLES, *WATCH], say, request.session) as found:
        yield found


@pytest.fixture(scope="module")
def replicated(built: Engine, say: Say, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Three brokers, and as few others as make versions; all healthy."""
    services = ["kafka", "kafka-2", "kafka-3", "aggregator-1", "client-1", "client-2", "monitor"]
    with _up(Stack(built, "llmos-three", COMPOSE, THREE_BROKERS, SMALL), services, say, request.session) as found:
        yield found


@contextmanager
def _up(stack: Stack, services: list[str], say: Say, session: pytest.Session) -> Iterator[Stack]:
    failed = session.testsfailed
    try:
        with timed(say, f"{len(services)} containers up and healthy"):
            stack.up(services)
        yield stack
    except AssertionError:
        failed = -1
        raise
    finally:
        if session.testsfailed > failed:
            say(stack.compose("logs", "--tail", "20"))
        stack.down()
        assert stack.left() == {"container": [], "volume": [], "network": []}
