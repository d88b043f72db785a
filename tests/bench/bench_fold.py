"""CPU time of verifying, decoding, validating and folding one update, beside the least that memory allows.

The floor is what any fold must move, at the speed at which memcpy moves as many bytes (read and written) in the same
run: the payload read once, the running sum read and written once. Times are of the CPU, one thread, the best of
several: `digest` is SHA-256 of the payload, `unzip` what zstd alone takes of `decode`, `check` the proof that all
is finite and within the limit, `fold` the addition to the sum. `whole` is the same update by way of a float32 delta
in memory (decode it all, take its norm, add it), for comparison. The delta is random (normal), which compresses
worse than a real one. The second table is what a version of four updates costs beside its folds.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec import decode, encode, weights_digest
from llmos_stream.codec.frames import PartReader, read_frame
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import Workspace
from llmos_stream.config import ServerOptimizerSettings
from llmos_stream.config.plugins import NoOptions
from llmos_stream.core import Update
from llmos_stream.core.delta import as_delta
from llmos_stream.core.flat import blocks, l2_norm, scratch
from llmos_stream.core.optimizer import Sgd
from llmos_stream.core.running_sum import RunningSum
from llmos_stream.core.validate import check_and_clip
from llmos_stream.roles.aggregator.decoding import Decoder
from llmos_stream.runtime import Offload
from llmos_stream.types import CodecId, CodecSpec, Fragment, UpdateHead
from llmos_stream.wire import Message, payload_digest
from llmos_stream.wire.store import MemoryStore
from tests.bench.common import add_flags, show, write_json

CODECS: dict[str, CodecSpec] = {
    "float32": CodecSpec(CodecId.FLOAT32),
    "int8": CodecSpec(CodecId.INT8, {"block": 256, "stochastic": 1}),
    "int4": CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 1}),
    "top 1 %": CodecSpec(CodecId.TOPK, {"fraction": 0.01, "bits": 8, "stochastic": 1}),
}
NUMELS = (1_000_000, 10_000_000)
MEMCPY_NUMEL = 10_000_000
ROOM = 1 << 40
FACTOR = 0.3


@dataclass(frozen=True)
class Measurement:
    """One codec at one size. Milliseconds of CPU; `ratio` and `ratio_with_digest` are multiples of the floor."""

    numel: int
    codec: str
    payload_bytes: int
    floor_ms: float
    digest_ms: float
    unzip_ms: float
    decode_ms: float
    validate_ms: float
    fold_ms: float
    total_ms: float
    ratio: float
    ratio_with_digest: float
    gb_s: float
    whole_ms: float
    twice_ms: float


@dataclass(frozen=True)
class VersionCost:
    """What a version costs beside its folds. Milliseconds of CPU."""

    numel: int
    first_fold_ms: float
    flush_ms: float
    encode_ms: float
    weights_digest_ms: float
    payload_digest_ms: float


def cpu_ms(action: Callable[[], object], repeats: int) -> float:
    """Least CPU time of `repeats` calls, after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        action()
        times.append(time.process_time() - begin)
    return 1e3 * min(times)


def _message(parts: Sequence[bytes], spec: CodecSpec) -> Message:
    digest = payload_digest(parts)
    head = UpdateHead("bench", 0, 0, 1, bytes(32), spec, sum(map(len, parts)), digest)
    store = MemoryStore(memoryview(part) for part in parts)
    return Message(head, None, store, 0, 0, 0, None, digest_on_the_way=digest)


def _unzip(parts: Sequence[bytes], spec: CodecSpec, numel: int) -> None:
    reader, zstd, workspace, codec = PartReader(parts), zstandard.ZstdDecompressor(), Workspace(), codec_for(spec)
    for begin in range(0, numel, SLICE):
        read_frame(reader, zstd, *codec.bounds(min(SLICE, numel - begin)), workspace)


def floor_ms(numel: int, payload_bytes: int, repeats: int) -> float:
    """What memcpy takes to move as many bytes, between vectors that no cache holds."""
    source, target = torch.zeros(MEMCPY_NUMEL), torch.zeros(MEMCPY_NUMEL)
    return cpu_ms(lambda: target.copy_(source), repeats) * (payload_bytes + 8 * numel) / (8 * MEMCPY_NUMEL)


def measure(codec: str, delta: Tensor, repeats: int) -> Measurement:
    spec, numel = CODECS[codec], delta.numel()
    parts = list(encode(delta, spec, generator=torch.Generator().manual_seed(0)))
    message = _message(parts, spec)
    total, room = torch.zeros(numel), torch.empty(numel)
    block = scratch(total)
    running = RunningSum()
    running.add(as_delta(total), FACTOR)

    def whole() -> None:
        decode(parts, spec, numel, room)
        l2_norm(room)
        for sums, part in blocks(total, room):
            sums.add_(torch.mul(part, FACTOR, out=block[: part.numel()]))

    with asyncio.Runner() as runner:
        offload = Offload(1)
        held, read = (Decoder([Fragment(0, numel, bytes(32))], offload, room) for room in (ROOM, 0))

        def update(decoder: Decoder = held) -> Update:
            return runner.run(decoder.decode(message))

        def fold(update: Update) -> None:
            running.add(as_delta(update.delta), FACTOR)

        def twice() -> None:
            found = update(read)
            check_and_clip(found.delta, numel, None)
            fold(found)

        decode_ms = cpu_ms(update, repeats)
        found = update()
        validate_ms = cpu_ms(lambda: check_and_clip(found.delta, numel, None), repeats)
        fold_ms = cpu_ms(lambda: fold(found), repeats)
        twice_ms = cpu_ms(twice, repeats)
        runner.run(offload.aclose())
    size = sum(map(len, parts))
    floor = floor_ms(numel, size, repeats)
    digest_ms = cpu_ms(lambda: payload_digest(parts), repeats)
    total_ms = decode_ms + validate_ms + fold_ms
    return Measurement(
        numel=numel,
        codec=codec,
        payload_bytes=size,
        floor_ms=floor,
        digest_ms=digest_ms,
        unzip_ms=cpu_ms(lambda: _unzip(parts, spec, numel), repeats),
        decode_ms=decode_ms,
        validate_ms=validate_ms,
        fold_ms=fold_ms,
        total_ms=total_ms,
        ratio=total_ms / floor,
        ratio_with_digest=(total_ms + digest_ms) / floor,
        gb_s=delta.nbytes / 1e6 / (total_ms + digest_ms),
        whole_ms=cpu_ms(whole, repeats),
        twice_ms=twice_ms,
    )


def measure_version(delta: Tensor, repeats: int) -> VersionCost:
    spec, weights = CODECS["float32"], delta.clone()
    parts = list(encode(weights, spec))
    optimizer = Sgd(NoOptions(), ServerOptimizerSettings(), delta.numel(), delta.device)
    total = delta.clone()

    def first_fold() -> None:
        RunningSum().add(as_delta(delta), FACTOR)

    return VersionCost(
        numel=delta.numel(),
        first_fold_ms=cpu_ms(first_fold, repeats),
        flush_ms=cpu_ms(lambda: optimizer.apply(weights, total, 4.0), repeats),
        encode_ms=cpu_ms(lambda: list(encode(weights, spec)), repeats),
        weights_digest_ms=cpu_ms(lambda: weights_digest(weights), repeats),
        payload_digest_ms=cpu_ms(lambda: payload_digest(parts), repeats),
    )


def _row(result: Measurement) -> list[str]:
    times = (result.digest_ms, result.unzip_ms, result.decode_ms, result.validate_ms, result.fold_ms)
    return [
        result.codec,
        f"{result.payload_bytes / 1e6:.2f}",
        *(f"{value:.2f}" for value in times),
        f"{result.floor_ms:.2f}",
        f"{result.ratio:.1f}",
        f"{result.ratio_with_digest:.1f}",
        f"{result.gb_s:.1f}",
        f"{result.whole_ms:.2f}",
        f"{result.twice_ms:.2f}",
    ]


COLUMNS = [
    *("codec", "MB", "digest", "unzip", "decode", "check", "fold", "floor"),
    *("x floor", "+digest", "GB/s", "whole", "twice"),
]
VERSION_COLUMNS = ["parameters", "first fold", "flush", "encode float32", "weights digest", "payload digest"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument(
        "--numel", type=int, action="append", help=f"parameters, any number of times (default {NUMELS[0]}, {NUMELS[1]})"
    )
    parser.add_argument("--repeats", type=int, default=9, help="of each measurement, the best counts (default 9)")


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    results: list[Measurement] = []
    versions: list[VersionCost] = []
    for numel in options.numel or NUMELS:
        delta = torch.randn(numel, generator=torch.Generator().manual_seed(0)).mul_(1e-3)
        here = [measure(codec, delta, options.repeats) for codec in CODECS]
        caption = (
            "ms of CPU. x floor: decode, check and fold; +digest: with SHA-256 of the payload; GB/s: float32, digest "
            "included; whole: by way of a float32 delta in memory; twice: not held but decoded twice"
        )
        show(f"One update of {numel:,} parameters", COLUMNS, [_row(result) for result in here], caption)
        results += here
        versions.append(measure_version(delta, options.repeats))
    rows = [[f"{item.numel:,}", *(f"{value:.2f}" for value in list(asdict(item).values())[1:])] for item in versions]
    show("A version, beside its folds", VERSION_COLUMNS, rows, "ms of CPU")
    write_json(
        options.output,
        "fold",
        {"updates": [asdict(result) for result in results], "versions": [asdict(item) for item in versions]},
    )
