"""The decoder of the intake: held or decoded twice, the same delta; and refused for the same reasons."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmos_stream.codec import SLICE, decode, encode, quantized_bytes
from llmos_stream.config import AggregationSettings
from llmos_stream.core import NewVersion, Rule, Update, start, step
from llmos_stream.core.flat import l2_norm
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.log.updates import decode_update
from llmos_stream.roles.aggregator.decoding import Decoder
from llmos_stream.runtime import Offload
from llmos_stream.storage.spool import Spools, spooled
from llmos_stream.types import CodecId, CodecSpec, Fragment, Part, SnapshotHead, UpdateHead
from llmos_stream.wire import Message, payload_digest
from llmos_stream.wire.store import MemoryStore
from tests.core.builders import tensors_in

NUMEL = SLICE + 12_345
WHOLE = (Fragment(0, NUMEL, bytes(32)),)
AMPLE = 1 << 30
SPECS = {
    "float32": CodecSpec(CodecId.FLOAT32),
    "bfloat16": CodecSpec(CodecId.BFLOAT16),
    "int8": CodecSpec(CodecId.INT8, {"block": 256, "stochastic": 0}),
    "int4": CodecSpec(CodecId.INT4, {"block": 64, "stochastic": 0}),
    "topk": CodecSpec(CodecId.TOPK, {"fraction": 0.01, "bits": 8, "stochastic": 0}),
    "topk2": CodecSpec(CodecId.TOPK2, {"chunk": 4096, "keep": 64}),
}


def flat(seed: int = 0, numel: int = NUMEL) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * 1e-2


def message(parts: list[bytes], spec: CodecSpec, sequence: int = 0, digest: bytes | None = None) -> Message:
    found = payload_digest(parts)
    head = UpdateHead("ann", sequence, 0, 5, bytes(32), spec, sum(map(len, parts)), digest or found)
    return Message(head, None, MemoryStore(memoryview(part) for part in parts), 0, 7, 8, b"ann")


def encoded(spec: CodecSpec, seed: int = 0) -> list[bytes]:
    key = (spec.id, seed)
    if key not in _ENCODED:
        _ENCODED[key] = list(encode(flat(seed), spec))
    return _ENCODED[key]


_ENCODED: dict[tuple[int, int], list[bytes]] = {}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread for torch: there are three that decode."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def values(update: Update) -> Tensor:
    assert not isinstance(update.delta, Tensor)
    return torch.cat([part.clone() for part in update.delta.slices()])


@pytest.fixture
async def offload() -> AsyncIterator[Offload]:
    async with Offload(3) as pool:
        yield pool


@pytest.mark.parametrize("room", [AMPLE, 0], ids=["held", "twice"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
async def test_a_delta_is_what_decode_gives(offload: Offload, spec: CodecSpec, room: int) -> None:
    decoder = Decoder(WHOLE, offload, room)
    for seed in range(2):
        parts = encoded(spec, seed)
        update = await decoder.decode(message(parts, spec))
        expected = decode(parts, spec, NUMEL)
        assert (update.partition, update.offset) == (0, 7)
        assert torch.equal(values(update), expected)
        assert not isinstance(update.delta, Tensor)
        assert update.delta.numel == NUMEL
        assert update.delta.norm() == l2_norm(expected)
        assert not update.delta.bound() < l2_norm(expected)
        assert torch.equal(values(update), expected)
        whole = decode_update(message(parts, spec), NUMEL)
        assert torch.equal(values(whole), expected)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync", "median", "multi_krum", "norm_bound"])
async def test_versions_do_not_depend_on_how_updates_are_decoded(
    offload: Offload, strategy: str, clip: float | None
) -> None:
    aggregation = AggregationSettings.model_validate(
        {"strategy": strategy, "buffer_size": len(SPECS), "clip_norm": clip, "one_of_a_client": False}
    )
    digests = set()
    for room in (None, AMPLE, 2 * SLICE):
        state = start(torch.zeros(NUMEL), bytes(32), rule=Rule(aggregation))
        decoder = Decoder(WHOLE, offload, room or 0, clips=clip is not None)
        published = []
        for number, spec in enumerate(SPECS.values()):
            found = message(encoded(spec, number), spec, number)
            update = decode_update(found, NUMEL) if room is None else await decoder.decode(found)
            state, effects = step(state, update, 0.0)
            published += [effect for effect in effects if isinstance(effect, NewVersion)]
        manifests = [[item.clip for item in version.manifest] for version in published]
        if strategy != "norm_bound":  # which has a bound of its own
            assert all((factor < 1) == (clip is not None) for factors in manifests for factor in factors)
        digests.add((payload_digest([version.weights.numpy().tobytes() for version in published]), str(manifests)))
    assert len(digests) == 1


async def test_an_update_takes_the_room_it_needs_and_the_next_takes_the_same(offload: Offload) -> None:
    spec = SPECS["int8"]
    decoder = Decoder(WHOLE, offload, quantized_bytes(spec, NUMEL))
    first = await decoder.decode(message(encoded(spec), spec))
    before = values(first)
    await decoder.decode(message(encoded(spec, 1), spec))
    assert not torch.equal(values(first), before)  # written over, as is said of it


@pytest.mark.parametrize("room", [AMPLE, 0], ids=["held", "twice"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
async def test_what_is_kept_is_not_written_over(offload: Offload, spec: CodecSpec, room: int) -> None:
    decoder, kept = Decoder(WHOLE, offload, room), []
    for seed in range(3):
        found = message(encoded(spec, seed), spec)
        update = await decoder.decode(found)
        assert not isinstance(update.delta, Tensor)
        kept.append(replace(update, delta=update.delta.keep()))
        decoder.close(found)
    for seed, update in enumerate(kept):
        assert torch.equal(values(update), decode(encoded(spec, seed), spec, NUMEL))


@pytest.mark.parametrize("room", [AMPLE, 0], ids=["held", "twice"])
async def test_a_payload_is_given_back_unless_it_is_all_there_is_of_what_is_kept(offload: Offload, room: int) -> None:
    spools, spec = Spools(0), SPECS["int8"]
    decoder = Decoder(WHOLE, offload, room)
    for keeps in (False, True):
        found = replace(message(encoded(spec), spec), parts=spooled(encoded(spec), spools.new()).parts)
        update = await decoder.decode(found)
        assert not isinstance(update.delta, Tensor)
        kept = update.delta.keep() if keeps else None
        decoder.close(found)
        if keeps and not room:
            assert b"".join(found.parts) == b"".join(encoded(spec))
        else:
            with pytest.raises(ValueError, match="closed"):
                next(iter(found.parts))
        del update, found, kept


async def test_k_updates_held_take_k_bytes_a_parameter(offload: Offload) -> None:
    """And a walk through all of them takes little more, however many there are."""
    held, count, spec = [], 8, SPECS["int8"]
    decoder = Decoder(WHOLE, offload, AMPLE)
    aggregation = AggregationSettings(strategy="median", buffer_size=count + 1, one_of_a_client=False)
    state = start(torch.zeros(NUMEL), bytes(32), rule=Rule(aggregation))
    for number in range(count):
        update = await decoder.decode(message(encoded(spec, number % 3), spec, number))
        state, _ = step(state, update, 0.0)
        held = [tensor for delta in state.pipeline._held for tensor in tensors_in(delta)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) < count * NUMEL * 1.05


@pytest.mark.parametrize("room", [AMPLE, 0], ids=["held", "twice"])
async def test_what_is_no_good_update_is_refused_and_the_next_is_decoded(offload: Offload, room: int) -> None:
    spec = SPECS["int8"]
    decoder, good = Decoder(WHOLE, offload, room), encoded(spec)
    snapshot = SnapshotHead(0, "momentum", bytes(32), spec, 0, bytes(32))
    for bad, reason in (
        (message(good, spec, digest=bytes(32)), Reason.WRONG_DIGEST),
        (message(good[:-1], spec), Reason.TRUNCATED),
        (message([*good, b"\0"], spec), Reason.CORRUPT_PAYLOAD),
        (message([good[0], b"\xff\xff\xff\xff"], spec), Reason.DECOMPRESSION_BOMB),
        (message(good, CodecSpec(99)), Reason.UNKNOWN_CODEC),
        (Message(snapshot, None, MemoryStore(), 0, 7, 8, None), Reason.UNSUPPORTED),
    ):
        with pytest.raises(Rejected) as caught:
            await decoder.decode(bad)
        assert caught.value.reason is reason
    update = await decoder.decode(message(good, spec))
    assert torch.equal(values(update), decode(good, spec, NUMEL))


async def test_nan_is_left_to_the_aggregation(offload: Offload) -> None:
    bad = flat()
    bad[SLICE + 3] = float("nan")
    parts = list(encode(bad, SPECS["float32"]))
    for room in (AMPLE, 0):
        update = await Decoder(WHOLE, offload, room).decode(message(parts, SPECS["float32"]))
        assert not isinstance(update.delta, Tensor)
        assert update.delta.norm() != update.delta.norm()


class Changing(list[Part]):
    """Parts that are others the second time."""

    def close(self) -> None:
        self.clear()


async def test_parts_that_change_between_two_readings_are_no_refusal(offload: Offload) -> None:
    spec = SPECS["int8"]
    parts = Changing(encoded(spec))
    whole = message(encoded(spec), spec)
    found = Message(whole.head, None, parts, 0, 7, 8, None)
    update = await Decoder(WHOLE, offload, 0).decode(found)
    parts.pop()
    with pytest.raises(StateError, match="no longer"):
        values(update)
