"""Fixtures that all rooms share: a clean environment, names that do not collide, and brokers to test against."""

import gc
import logging
import os
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings as hypothesis_settings

from llmos_stream.broker import Broker, LocalKafka, MemoryBroker, connect
from llmos_stream.config import BrokerSettings
from llmos_stream.runtime.logs import Sparing
from tests.shared_kafka import SharedKafka

IN_CI = bool(os.environ.get("CI"))
EXTERNAL_KAFKA = os.environ.get("LLMOS_TEST_BOOTSTRAP")

hypothesis_settings.register_profile("llmos", deadline=None, derandomize=IN_CI)
hypothesis_settings.load_profile("llmos")


_SHARED_KAFKA = pytest.StashKey[SharedKafka]()
_PACKAGE_LOGGER = logging.getLogger("llmos_stream")
# Before any fixture of a module has run a command, which sets up logging for its whole process.
_LOGGING = (list(_PACKAGE_LOGGER.handlers), _PACKAGE_LOGGER.level, _PACKAGE_LOGGER.propagate)


@dataclass(frozen=True)
class KafkaNode:
    """A real Kafka to test on. `local` is the node itself, where the test is marked `own_kafka`."""

    bootstrap_servers: str
    local: LocalKafka | None = None

    def settings(self) -> BrokerSettings:
        return BrokerSettings(bootstrap_servers=self.bootstrap_servers)

    def own(self) -> LocalKafka:
        """The node, for tests that stop and kill it."""
        assert self.local is not None, "others use this Kafka: mark the test own_kafka"
        return self.local


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Let `make test` meet a real Kafka once with each behaviour, and one worker run all that stops and kills a Kafka.

    Modules that are marked `in_order` stay in order when others are shuffled.
    """
    met = set()
    for item in items:
        if item.get_closest_marker("own_kafka") is not None:
            item.add_marker(pytest.mark.xdist_group("own_kafka"))
        if isinstance(item, pytest.Function) and item.get_closest_marker("kafka") is not None:
            behaviour = item.path, item.originalname
            if behaviour in met or item.get_closest_marker("long_on_kafka") is not None:
                item.add_marker(pytest.mark.full)
            met.add(behaviour)
    place = {id(item): number for number, item in enumerate(items)}
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and any("@" not in item.nodeid for item in items if _grouped(item)):
        raise pytest.UsageError("tests must be grouped: say --dist loadgroup, with the pytest of constraints.txt")
    places: dict[Path, list[int]] = {}
    for number, item in enumerate(items):
        if item.get_closest_marker("in_order") is not None:
            places.setdefault(item.path, []).append(number)
    for numbers in places.values():
        ordered = sorted((items[number] for number in numbers), key=lambda item: place[id(item)])
        for number, item in zip(numbers, ordered, strict=True):
            items[number] = item


def _grouped(item: pytest.Item) -> bool:
    return item.get_closest_marker("xdist_group") is not None


def pytest_collection_finish() -> None:
    """Thousands of tests are a large heap. Without this each `gc.collect` of a test walks it, for half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No fixture leaves: the time limit of a test does not hold for waiting for the other workers."""
    gc.unfreeze()
    if (shared := session.config.stash.get(_SHARED_KAFKA, None)) is not None:
        shared.leave()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has set for a federation of theirs must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("LLMOS_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """What a command, a role or a benchmark sets for its whole process is put back: others come after it here."""
    threads = torch.get_num_threads()
    _reset_logging()
    yield
    _reset_logging()
    torch.set_num_threads(threads)


def _reset_logging() -> None:
    handlers, level, propagate = _LOGGING
    _PACKAGE_LOGGER.handlers, _PACKAGE_LOGGER.propagate = list(handlers), propagate
    _PACKAGE_LOGGER.setLevel(level)
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and any(isinstance(one, Sparing) for one in logger.filters):
            logger.filters = [Sparing() if isinstance(one, Sparing) else one for one in logger.filters]


def need_a_local_kafka() -> None:
    """Skip where none can be started, fail where CI promises one."""
    if (reason := LocalKafka.missing()) is not None:
        if IN_CI:
            pytest.fail(f"CI must test against a real Kafka: {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> KafkaNode:
    """A real Kafka, one for the whole run and all its workers; that of LLMOS_TEST_BOOTSTRAP where it names one."""
    if EXTERNAL_KAFKA:
        return KafkaNode(EXTERNAL_KAFKA)
    need_a_local_kafka()
    folder = tmp_path_factory.getbasetemp()
    shared = SharedKafka(folder.parent if hasattr(pytestconfig, "workerinput") else folder)
    servers = shared.join()
    pytestconfig.stash[_SHARED_KAFKA] = shared
    return KafkaNode(servers)


@pytest.fixture(scope="session")
def _own_kafka() -> Iterator[LocalKafka]:
    need_a_local_kafka()
    with LocalKafka() as local:
        yield local


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> Iterator[KafkaNode]:
    """A real Kafka: everybody's, or one to stop and kill for a test that is marked `own_kafka`."""
    if request.node.get_closest_marker("own_kafka") is None:
        yield request.getfixturevalue("shared_kafka")
        return
    local: LocalKafka = request.getfixturevalue("_own_kafka")
    yield KafkaNode(local.bootstrap_servers, local)
    local.start()


@pytest.fixture
def own(kafka: KafkaNode) -> LocalKafka:
    """The Kafka of a test that is marked `own_kafka`, to be stopped and killed; it runs again afterwards."""
    return kafka.own()


@pytest.fixture
def federation() -> str:
    """A name no other test uses, so that tests can share a broker."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def broker(request: pytest.FixtureRequest, federation: str) -> AsyncIterator[Broker]:
    """Each implementation in turn."""
    if request.param == "memory":
        yield MemoryBroker()
        return
    node: KafkaNode = request.getfixturevalue("kafka")
    async with connect(node.settings()) as broker:
        yield broker
        if node.local is None:  # Kafka works for every topic that there is, and others use this one
            await broker.delete_topics([topic.name for topic in await broker.list_topics(federation)])
