"""Bad input goes to quarantine with its reason and offset, and the run goes on. On both brokers."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import zstandard

from llmos_stream.broker import Broker
from llmos_stream.codec import encode
from llmos_stream.types import CodecId, CodecSpec, Contribution, VersionHead, VersionKind
from llmos_stream.wire import message_id, pack_prelude, payload_digest, split
from tests.roles.aids import FLOAT32, LAYOUT, NUMEL, aggregator, delta_of, records_of, settings_for, update, update_head

GOOD = list(encode(delta_of(1.0), FLOAT32))


def _section(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def _truncated_frame() -> list[bytes]:
    # Named whole in the head, cut in the only record.
    return [update(delta_of(1.0))[0][:-7]]


def _wrong_layout() -> list[bytes]:
    return update(delta_of(1.0), layout_digest=b"\1" * 32)


def _wrong_digest() -> list[bytes]:
    return update(delta_of(1.0), payload_digest=b"\2" * 32)


def _not_finite() -> list[bytes]:
    delta = delta_of(1.0)
    delta[7] = math.nan
    return update(delta)


def _infinite() -> list[bytes]:
    delta = delta_of(1.0)
    delta[0] = -math.inf
    return update(delta)


def _unknown_codec() -> list[bytes]:
    return update(delta_of(1.0), codec=CodecSpec(99))


def _bad_params() -> list[bytes]:
    return update(delta_of(1.0), codec=CodecSpec(CodecId.INT8, {"block": 7, "rounding": 0}))


def _missing_chunk() -> list[bytes]:
    records = update(torch.randn(NUMEL, generator=torch.Generator().manual_seed(0)), 64)
    assert len(records) > 3
    return records[:1] + records[2:]


def _bomb() -> list[bytes]:
    # A gigabyte of zeros in some 30 kB, where the layout needs 200 bytes: the head's claim is refused as it is.
    payload = [_section(zstandard.ZstdCompressor().compress(bytes(1 << 30)))]
    return records_of(update_head(payload), payload)


def _small_bomb() -> list[bytes]:
    # Small enough to pass for a payload; what it unpacks to is a thousand times what the layout needs.
    payload = [_section(zstandard.ZstdCompressor().compress(bytes(1 << 18)))]
    return records_of(update_head(payload), payload)


def _unknown_base() -> list[bytes]:
    return update(delta_of(1.0), base_version=17)


def _no_examples() -> list[bytes]:
    return update(delta_of(1.0), num_examples=0)


def _garbage() -> list[bytes]:
    return [b"\x00\xff rubbish \xfe" * 9]


def _version_as_update() -> list[bytes]:
    head = VersionHead(
        number=1,
        parent=0,
        kind=VersionKind.FULL,
        layout_digest=LAYOUT.digest,
        codec=FLOAT32,
        payload_size=sum(map(len, GOOD)),
        payload_digest=payload_digest(GOOD),
        weights_digest=b"\0" * 32,
        time_ms=0,
        tensors=LAYOUT.tensors,
    )
    identity = message_id("a", 1)
    return list(split(pack_prelude(head), GOOD, payload_size=head.payload_size, message_id=identity, chunk_bytes=4096))


def _empty_payload() -> list[bytes]:
    return records_of(update_head([]), [])


def _enormous_version() -> list[bytes]:
    """A head that is as large as heads may be: described in full, it would not fit a quarantine entry."""
    row = Contribution("c" * 100, 0, 0, 0, 1, 0, 1.0, 1.0, bytes(32))
    head = VersionHead(
        number=1,
        parent=0,
        kind=VersionKind.DELTA,
        layout_digest=LAYOUT.digest,
        codec=FLOAT32,
        payload_size=0,
        payload_digest=payload_digest([]),
        weights_digest=bytes(32),
        time_ms=0,
        manifest=(row,) * 4000,
    )
    return list(split(pack_prelude(head), [], payload_size=0, message_id=message_id("a", 1), chunk_bytes=900_000))


def _trailing_bytes() -> list[bytes]:
    payload = [*GOOD, b"more"]
    return records_of(update_head(payload), payload)


def _flipped_payload() -> list[bytes]:
    body = bytearray(b"".join(GOOD))
    body[len(body) // 2] ^= 0xFF
    payload = [bytes(body)]
    return records_of(replace(update_head(GOOD), payload_digest=payload_digest(payload)), payload)


CASES: list[tuple[Callable[[], list[bytes]], str]] = [
    (_truncated_frame, "truncated"),
    (_wrong_layout, "wrong_layout"),
    (_wrong_digest, "wrong_digest"),
    (_not_finite, "not_finite"),
    (_infinite, "not_finite"),
    (_unknown_codec, "unknown_codec"),
    (_bad_params, "bad_codec_params"),
    (_missing_chunk, "missing_chunk"),
    (_bomb, "too_large"),
    (_small_bomb, "decompression_bomb"),
    (_unknown_base, "unknown_base_version"),
    (_no_examples, "bad_num_examples"),
    (_garbage, "malformed"),
    (_version_as_update, "unsupported"),
    (_enormous_version, "unsupported"),
    (_empty_payload, "truncated"),
    (_trailing_bytes, "corrupt_payload"),
    (_flipped_payload, "corrupt_payload"),
]


async def test_every_kind_of_rubbish_is_quarantined_and_the_run_goes_on(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation)) as running:
        offsets = [await running.send(make()) for make, _ in CASES]
        await running.send(update(delta_of(1.0), client_id="honest"), "honest")
        version = await running.version(1)
        entries = await running.quarantined(len(CASES))
        events = await running.events("update_rejected", len(CASES))
    assert torch.equal(version.weights, delta_of(1.0))
    assert [item.client_id for item in version.head.manifest] == ["honest"]
    for place, (make, reason) in enumerate(CASES):
        entry = next(item for item in entries if item["offset"] == offsets[place] or _near(item, offsets, place))
        assert entry["reason"] == reason, make.__name__
        assert entry["topic"] == running.topics.updates
        assert entry["partition"] == 0
        assert entry["detail"]
    assert sorted(str(event.data["reason"]) for event in events) == sorted(reason for _, reason in CASES)


def _near(entry: dict[str, object], offsets: list[int], place: int) -> bool:
    """A gap is noticed at the record after it; the entry still names the message's beginning."""
    following = offsets[place + 1] if place + 1 < len(offsets) else math.inf
    offset = entry["offset"]
    return isinstance(offset, int) and offsets[place] <= offset < following


async def test_the_head_is_kept_and_the_payload_is_not(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation)) as running:
        await running.send(update(delta_of(0.123), layout_digest=b"\1" * 32, sequence=9))
        entry = (await running.quarantined(1))[0]
    assert (entry["head"]["client_id"], entry["head"]["sequence"]) == ("a", 9)
    assert entry["head"]["layout_digest"] == "01" * 32
    assert len(entry["head_bytes"]) <= 4 * 1024 / 3 + 4


async def test_an_enormous_key_is_no_weapon(broker: Broker, federation: str) -> None:
    """As large as Kafka takes in `updates`: the entry about it must still go into `quarantine`."""
    async with aggregator(broker, settings_for(federation)) as running:
        async with broker.producer() as producer:
            await producer.send(running.topics.updates, b"rubbish", key=b"k" * 1_040_000, partition=0)
        record = (await running.read(running.topics.quarantine, 1))[0]
    assert record.key == b"k" * 256


async def test_rubbish_alone_is_committed_past(broker: Broker, federation: str) -> None:
    """Refused records are not read again after a restart, though no version took their offsets along."""
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        for _ in range(3):
            await running.send(_garbage())
        await running.quarantined(3)
    async with aggregator(broker, settings) as running:
        await running.send(_wrong_layout())
        entries = await running.quarantined(4)
    assert [entry["reason"] for entry in entries] == ["malformed"] * 3 + ["wrong_layout"]


async def test_tails_of_folded_messages_are_no_rubbish_after_a_restart(broker: Broker, federation: str) -> None:
    """A restart begins at what was not settled, in the middle of a message that was."""
    settings = settings_for(federation, aggregation={"buffer_size": 1})
    half = update(delta_of(1.0), 64, client_id="half")
    whole = update(delta_of(1.0), 64, client_id="whole")
    async with aggregator(broker, settings) as running:
        # whole begins before half and ends after it: half holds the offset back, in the middle of whole.
        async with broker.producer() as producer:
            for client, record in (("whole", whole[0]), ("half", half[0]), *(("whole", rest) for rest in whole[1:])):
                await producer.send(running.topics.updates, record, key=client.encode(), partition=0)
        await running.version(1)
    async with aggregator(broker, settings) as running:
        await running.send(half[1:], "half")
        version = await running.version(2)
        await running.send(_garbage())
        entries = await running.quarantined(1)
    assert version.head.manifest[0].client_id == "half"
    assert [entry["reason"] for entry in entries] == ["malformed"]


async def test_too_stale_is_refused(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, staleness={"kind": "constant", "maximum": 1})
    async with aggregator(broker, settings) as running:
        for sequence in range(2):
            await running.send(update(delta_of(1.0), sequence=sequence))
        await running.version(2)
        await running.send(update(delta_of(1.0), sequence=2, base_version=0))
        entry = (await running.quarantined(1))[0]
    assert entry["reason"] == "too_stale"


async def test_a_client_that_dies_half_way_is_dropped_and_holds_nothing_up(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, wire={"incomplete_seconds": 0.3})
    async with aggregator(broker, settings) as running:
        half = update(delta_of(1.0), 64, client_id="dead")[:2]
        offset = await running.send(half, "dead")
        await running.send(update(delta_of(1.0)))
        version = await running.version(1)
        entry = (await running.quarantined(1))[0]
    assert len(version.head.manifest) == 1
    assert (entry["reason"], entry["offset"]) == ("incomplete", offset)
