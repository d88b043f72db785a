"""Where aiokafka (0.12 to 0.14) needs help. All that touches its private names is in this module."""

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.consumer.fetcher import READ_UNCOMMITTED
from aiokafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError
from aiokafka.protocol.metadata import MetadataRequest

AnyClient: TypeAlias = AIOKafkaAdminClient | AIOKafkaConsumer | AIOKafkaProducer

_IMPATIENT_SECONDS = 1.0
_LIST_OFFSETS = 2  # in Kafka's protocol
_METADATA_VERSION = 5  # the newest that aiokafka knows


def network_of(client: AnyClient) -> AIOKafkaClient:
    """What holds its connections."""
    return client.client if isinstance(client, AIOKafkaProducer) else client._client


async def described_topics(client: AnyClient, topics: Collection[str] | None) -> Sequence[Mapping[str, Any]]:
    """What the brokers know of `topics`, or of all that there are.

    aiokafka's own question for one topic creates it where Kafka creates topics by itself. To ask for all in its place
    costs 50 ms where there are a thousand.
    """
    asking: Any = MetadataRequest  # a list of versions in 0.12, what chooses the version after it
    if isinstance(asking, list):
        asking = asking[_METADATA_VERSION]
    network = network_of(client)
    answer = await network.send(network.get_random_node(), asking(None if topics is None else list(topics), False))
    found: Sequence[Mapping[str, Any]] = answer.to_object()["topics"]
    return found


def writer_error(client: AIOKafkaProducer) -> BaseException | None:
    """What killed the task that sends, if anything did; later calls fail with errors that do not say so."""
    task = client._sender.sender_task
    return task.exception() if task is not None and task.done() and not task.cancelled() else None


def reader_error(client: AIOKafkaConsumer) -> BaseException | None:
    """What ended the task that fetches, if it has ended; polls would find nothing for ever."""
    task = client._fetcher.error_future
    if not task.done():
        return None
    error: BaseException | None = None if task.cancelled() else task.exception()
    return error or KafkaError("it ended without a word")


def lacks_partitions(client: AIOKafkaConsumer, partitions: Collection[tuple[str, int]]) -> bool:
    """Whether the brokers' last word on who leads what lacks one of these. Fetches from it wait without end."""
    cluster = client._client.cluster
    return any(number not in (cluster.partitions_for_topic(topic) or ()) for topic, number in partitions)


def look_again(client: AIOKafkaProducer) -> None:
    """Let a transactional producer look for its coordinator again where the broker that it asked has just gone.

    aiokafka waits where that broker does not answer, and ends its sender for good where the connection closes.
    """
    look_up = client.client.coordinator_lookup

    async def look_up_again(kind: int, key: str) -> int:
        try:
            found: int = await look_up(kind, key)
        except KafkaConnectionError as error:
            raise NodeNotReadyError from error
        return found

    client.client.coordinator_lookup = look_up_again


async def prepare_consumer(client: AIOKafkaConsumer, topics: Collection[str], wait_ms: int) -> None:
    """Learn who leads `topics`, and look up offsets on a second connection while a fetch is under way.

    Without the first, aiokafka's first look-up sleeps for 100 ms. Without the second, a look-up waits for the fetch
    that the broker holds, up to `wait_ms`: Kafka answers the requests of a connection in order.
    """
    client._fetcher._fetch_max_wait_ms = wait_ms
    send = client._client.send

    def send_past_fetches(node: int, request: Any, *, group: int = ConnectionGroup.DEFAULT) -> Awaitable[Any]:
        if request.API_KEY == _LIST_OFFSETS and node in client._fetcher._in_flight:
            group = ConnectionGroup.COORDINATION
        answer: Awaitable[Any] = send(node, request, group=group)
        return answer

    client._client.send = send_past_fetches
    await client._client.set_topics(topics)


async def high_watermarks(client: AIOKafkaConsumer, at: Sequence[TheirPartition]) -> Mapping[TheirPartition, int]:
    """The ends of partitions with what open transactions wrote; a consumer itself asks only for stable offsets."""
    asking = copy(client._fetcher)
    asking._isolation_level = READ_UNCOMMITTED
    found: Mapping[TheirPartition, int] = await asking.end_offsets(at, client._request_timeout_ms)
    return found


def seek(client: AIOKafkaConsumer, at: TheirPartition, offset: int) -> None:
    """Read on from `offset` without waiting for the fetch that the broker holds where the log ends.

    aiokafka does not take back a fetch, and Kafka answers in order, so the connection goes with it.
    """
    position = client._subscription.subscription.assignment.state_value(at)._position
    held = client.last_stable_offset(at) in {None, position}
    client.seek(at, offset)
    if held:
        for fetch in list(client._fetcher._pending_tasks):
            if fetch.cancel():
                # One that has not begun, or that waits after an error, ends as cancelled: what fetches would look at
                # its result, and end with it, without a word.
                client._fetcher._pending_tasks.discard(fetch)
                fetch.add_done_callback(lambda _: _fetch_anew(client))


def _fetch_anew(client: AIOKafkaConsumer) -> None:
    for (_, group), connection in client._client._conns.items():
        if group == ConnectionGroup.DEFAULT:
            connection.close()
    client._fetcher._notify(client._fetcher._wait_consume_future)


async def uninterrupted(work: Awaitable[None], *, seconds: float) -> None:
    """Await a client's start or end. Cancelled, let it come to its end for about this long first.

    Cancelled while it asks for metadata for the first time, aiokafka forgets to close that connection. A client whose
    closing is cancelled stays open.
    """
    working = asyncio.gather(work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working], timeout=seconds)
        working.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await working
        raise


async def close_producer(client: AIOKafkaProducer, *, flush: bool, seconds: float) -> None:
    """Stop within about this long. `stop` alone waits without limit for a broker that is gone.

    Records that could not be flushed in time are dropped, without `flush` all that wait are.
    """
    if not (flush and await _flushed(client, seconds)):
        task = client._sender.sender_task
        task.remove_done_callback(client._sender._fail_all)  # would trip over what we fail here ourselves
        waiting = client._message_accumulator
        # A batch that is sent again takes itself out of these when it fails, and is in them no more.
        waiting._pending_batches.update(batch for batches in waiting._batches.values() for batch in batches)
        waiting.fail_all(KafkaError("producer closed"))
        seconds = min(seconds, _IMPATIENT_SECONDS)
    with suppress(Exception):
        async with asyncio.timeout(seconds):
            await client.stop()
    await client.client.close()
    _retrieve(client)


async def _flushed(client: AIOKafkaProducer, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await client.flush()
    except TimeoutError:
        return False
    return True


async def close_consumer(client: AIOKafkaConsumer, *, seconds: float) -> None:
    """Stop within about this long. `stop` alone lets the CancelledError of a fetch under way out as if it were ours."""
    fetcher = client._fetcher
    with suppress(Exception):
        async with asyncio.timeout(seconds):
            if fetcher is not None:
                fetcher._fetch_task.cancel()
                await asyncio.wait([fetcher._fetch_task])
                if fetches := list(fetcher._pending_tasks):
                    for fetch in fetches:
                        fetch.cancel()
                    await asyncio.wait(fetches)
                fetcher._pending_tasks.clear()
            await client.stop()
    await client._client.close()


def _retrieve(client: AIOKafkaProducer) -> None:
    """Look at errors nobody awaits, or asyncio complains of each when it is collected."""
    forgotten = [client._txn_manager._transaction_waiter]
    for batches in client._message_accumulator._batches.values():
        for batch in batches:
            forgotten += [batch._drain_waiter, batch.future]
    for future in forgotten:
        if future is not None and future.done() and not future.cancelled():
            future.exception()
