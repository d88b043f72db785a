"""aiokafka's settings: each reaches it, and the log holds with the oddest of them."""

import os
import subprocess
import sys
from typing import Any

import pytest
from aiokafka import codec

from llmos_stream.broker import connect
from llmos_stream.broker.kafka.heap import keep_freed
from llmos_stream.broker.kafka.tuning import fetch_options, fetch_wait_ms, produce_options
from llmos_stream.broker.placement import MAX_RECORD_BYTES
from llmos_stream.config import BrokerSettings, WireSettings
from llmos_stream.errors import ConfigError
from llmos_stream.wire.chunks import CHUNK_OVERHEAD
from tests.broker.helpers import make_topic, read_all, take, values
from tests.conftest import KafkaNode

_GZIP = 1  # in Kafka's record format

# Blocks as aiokafka makes them of a record, freed again; prints the pages that had to be faulted in for it.
_FAULTS = """
import resource, sys
from llmos_stream.broker.kafka.heap import keep_freed
keep_freed(int(sys.argv[1]))
def churn():
    for _ in range(20):
        blocks = [bytearray(b"x") * 1_000_000 for _ in range(9)]
        del blocks
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


_WAITS = [(500, 1), (500, 2), (4321, 16), (7, 2)]


def _settings(**more: object) -> BrokerSettings:
    return BrokerSettings.model_validate({"bootstrap_servers": "127.0.0.1:1", **more})


@pytest.mark.parametrize("name", ["max_partition_fetch_bytes", "fetch_max_bytes"])
def test_fetch_settings_keep_their_names(name: str) -> None:
    assert fetch_options(_settings(**{name: 4321}))[name] == 4321
    assert set(fetch_options(_settings())) == {"max_partition_fetch_bytes", "fetch_max_bytes"}


def test_nobody_waits_long_for_other_partitions() -> None:
    waits = [fetch_wait_ms(_settings(fetch_max_wait_ms=ms), count) for ms, count in _WAITS]
    assert waits == [500, 50, 50, 7]


@pytest.mark.parametrize(("name", "value"), [("max_batch_size", 4321), ("linger_ms", 7), ("compression_type", "gzip")])
def test_produce_settings_keep_their_names(name: str, value: object) -> None:
    assert produce_options(_settings(**{name: value}))[name] == value


def test_nothing_is_compressed_twice_unless_asked() -> None:
    assert produce_options(_settings())["compression_type"] is None


def test_a_compression_that_is_not_installed_is_a_setting_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "has_zstd", lambda: False)
    with pytest.raises(ConfigError, match=r"broker\.compression_type: zstd needs the package cramjam"):
        produce_options(_settings(compression_type="zstd"))


def test_a_fetch_takes_two_whole_chunks_and_little_more() -> None:
    """What is left over is the beginning of a third, which comes once more with the next fetch."""
    chunk = CHUNK_OVERHEAD + WireSettings().chunk_bytes
    left = _settings().max_partition_fetch_bytes - 2 * chunk
    assert 0 <= left < chunk // 100


@pytest.mark.kafka
async def test_what_is_set_is_what_aiokafka_runs_with(kafka: KafkaNode, federation: str) -> None:
    odd = {
        "max_partition_fetch_bytes": 54_321,
        "fetch_max_bytes": 65_432,
        "fetch_max_wait_ms": 76,
        "max_batch_size": 8_765,
        "linger_ms": 9,
        "compression_type": "gzip",
    }
    broker = connect(kafka.settings().model_copy(update=odd))
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        opened: Any = producer
        accumulator = opened._client._message_accumulator
        assert accumulator._batch_size == 8_765
        assert accumulator._linger_time == 0.009
        assert accumulator._compression_type == _GZIP
        assert opened._client._max_request_size == MAX_RECORD_BYTES
        other: Any = reader
        fetcher = other._client._fetcher
        assert fetcher._max_partition_fetch_bytes == 54_321
        assert fetcher._fetch_max_bytes == 65_432
        assert fetcher._fetch_max_wait_ms == 76


@pytest.mark.kafka
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"max_partition_fetch_bytes": 1024, "fetch_max_bytes": 1024}, id="fetches smaller than a record"),
        pytest.param({"max_batch_size": 1}, id="every record a batch"),
        pytest.param({"max_batch_size": 1_000_000, "linger_ms": 20}, id="batches of many chunks"),
        pytest.param({"compression_type": "gzip"}, id="compressed by Kafka too"),
        pytest.param({"fetch_max_wait_ms": 1, "heap_bytes": 0}, id="no patience"),
    ],
)
async def test_the_log_holds_with_the_oddest_settings(
    kafka: KafkaNode, federation: str, odd: dict[str, object]
) -> None:
    broker = connect(kafka.settings().model_copy(update=odd))
    topic = await make_topic(broker, federation)
    largest = os.urandom(WireSettings().chunk_bytes)
    runs = [largest, b"small", largest[:400_000], largest[:400_000], b"", largest]
    async with broker.producer() as plain, broker.producer(f"{federation}-one") as transactional:
        await plain.send_all(topic, runs)
        async with transactional.transaction() as transaction:
            await transaction.send_all(topic, runs)
            await transaction.send(topic, b"last", key=b"key")
    expected = [*runs, *runs, b"last"]
    async with broker.reader([topic], start="earliest") as reader:
        assert values(await take(reader, len(expected))) == expected
    assert values(await read_all(broker, topic)) == expected


def test_freed_memory_is_kept_for_the_next_records() -> None:
    faults = {size: _faults(size) for size in (0, 32 << 20)}
    if not keep_freed(32 << 20):
        pytest.skip("malloc is not glibc's, or the environment sets it")
    assert faults[32 << 20] * 10 < faults[0]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_malloc_is_left_to_who_has_set_it_already(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1000000")
    assert not keep_freed(32 << 20)


def test_size_0_leaves_malloc_alone() -> None:
    assert not keep_freed(0)


def _faults(size: int) -> int:
    command = [sys.executable, "-c", _FAULTS, str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
