"""The stack, brought up once for the tests that use it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from _pytest.capture import CaptureManager

from tests.docker import images
from tests.docker.engine import Engine, engine
from tests.docker.needs import require
from tests.docker.stack import ROLES, WATCH, Stack
from tests.docker.waiting import Say, timed


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Say:
    """A line for whoever watches, shown whatever the tests come to."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert isinstance(capture, CaptureManager)

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\ncontainers: {text}", end="", flush=True)

    return line


@pytest.fixture(scope="module")
def built(say: Say) -> Iterator[Engine]:
    """An engine with all images."""
    require()
    with ExitStack() as held:
        held.enter_context(timed(say, "everything"))
        folder = held.enter_context(TemporaryDirectory(prefix="llmos-containers-", ignore_cleanup_errors=True))
        found = held.enter_context(engine(Path(folder)))
        with timed(say, "base image"):
            images.make_base(found)
        with timed(say, "our image"):
            images.make_app(found)
        with timed(say, "stand-ins"):
            images.make_kafka(found)
            images.make_prometheus(found)
        yield found


@pytest.fixture(scope="module")
def stack(built: Engine, say: Say) -> Iterator[Stack]:
    """The whole stack of `docker/compose.yaml` but Grafana, whose image cannot be had everywhere; all healthy."""
    found = Stack(built)
    try:
        with timed(say, "up and healthy"):
            found.up(["kafka", *ROLES, *WATCH])
        yield found
    except AssertionError:
        say(found.compose("logs", "--tail", "15"))
        raise
    finally:
        found.down()
