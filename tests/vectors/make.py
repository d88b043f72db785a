"""The test vectors of the protocol: `FOLDER/NAME.bin`, the bytes, and `FOLDER/NAME.json`, what they mean.

    python -m tests.vectors

writes them into the documentation. A test makes them anew and compares every byte, so that they cannot drift.

zstd's output differs from version to version. So the bodies of payloads are stored in their zstd frames as they are,
which every decoder reads (RFC 8878, raw blocks). One vector is really compressed; its bytes stay as long as they
decompress to the body.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec import Layout, Residual, encode, encode_delta, weights_digest, with_buffers
from llmos_stream.errors import Reason
from llmos_stream.log.snapshots import pay
from llmos_stream.types import (
    CodecId,
    CodecSpec,
    Contribution,
    Event,
    EventKind,
    Fragment,
    Head,
    LocalModelHead,
    Role,
    SnapshotHead,
    TensorKind,
    TensorSpec,
    UpdateHead,
    VersionHead,
    VersionKind,
)
from llmos_stream.wire import (
    Refusal,
    describe,
    dump_event,
    head_digest,
    load_event,
    message_id,
    pack_prelude,
    split,
)
from llmos_stream.wire.control import (
    Checkpoint,
    Leader,
    Pointer,
    Promotion,
    RunEnd,
    dump_finish,
    dump_paused,
    dump_run_end,
    dump_running,
    dump_sequences,
    dump_setting,
)
from llmos_stream.wire.quarantine import dump_quarantined

TIME_MS = 1_767_225_600_000
"""When all of it happened: 2026-01-01T00:00:00Z."""
_LENGTH = struct.Struct("<I")
_MOST_RAW = 128 * 1024
_NUMBERS = re.compile(r"\[[^\[\]{}]+\]")
"""A list of numbers or names in JSON, which is a line then."""

PLAIN = Layout((TensorSpec("weight", (6, 6), "float32"), TensorSpec("bias", (5,), "bfloat16")))
BUFFERED = Layout((*PLAIN.tensors, TensorSpec("running_mean", (3,), "float32", TensorKind.BUFFER)))
CUT = BUFFERED.fragments(2)
CHUNKED = Layout((TensorSpec("weight", (10, 15), "float32"),))
COMPRESSED = Layout((TensorSpec("weight", (64, 40), "float32"),))

_BLOCKS = {"block": 32, "stochastic": 0}
CODECS: Mapping[str, CodecSpec] = {
    "float32": CodecSpec(CodecId.FLOAT32),
    "float16": CodecSpec(CodecId.FLOAT16),
    "bfloat16": CodecSpec(CodecId.BFLOAT16),
    "int8": CodecSpec(CodecId.INT8, _BLOCKS),
    "int4": CodecSpec(CodecId.INT4, _BLOCKS),
    "topk": CodecSpec(CodecId.TOPK, {"fraction": 0.25, "bits": 8, "stochastic": 0}),
    "topk-32": CodecSpec(CodecId.TOPK, {"fraction": 0.25, "bits": 32, "stochastic": 0}),
    "topk2": CodecSpec(CodecId.TOPK2, {"chunk": 64, "keep": 8}),
}
_RULE = {"strategy": "fedbuff", "buffer_size": 2}
_CHAIN = CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 0})


@dataclass(frozen=True)
class Vector:
    """One file of bytes, and what they mean."""

    name: str
    data: bytes
    meaning: Mapping[str, object]

    @property
    def text(self) -> str:
        about = {"bytes": len(self.data), "sha256": hashlib.sha256(self.data).hexdigest()}
        text = json.dumps({**about, **self.meaning}, indent=1)
        return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def vectors(folder: Path) -> Iterator[Vector]:
    """All of them. `folder` may have those made before, of which the compressed bytes stay."""
    yield from _updates(folder)
    yield from _versions()
    yield from _chunks()
    yield from _control()
    yield from _events()
    yield from _quarantine()


def write(folder: Path) -> None:
    """Write all files, and delete those of vectors that there are no longer."""
    made = list(vectors(folder))
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for vector in made:
        (folder / f"{vector.name}.bin").write_bytes(vector.data)
        (folder / f"{vector.name}.json").write_text(vector.text)


def numbers(count: int, seed: int = 37) -> Tensor:
    """Values that float32 holds exactly, of both signs, with zeros among them."""
    return torch.tensor([((index * seed) % 101 - 50) / 64 for index in range(count)])


def _stored(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The frames of a payload with their bodies as they are: zstd's headers and one raw block."""
    for frame in frames:
        body = zstandard.ZstdDecompressor().decompress(frame[_LENGTH.size :])
        assert 256 <= len(body) + 256 < _MOST_RAW
        small = len(body) < 256
        header = struct.pack("BB", 0x20, len(body)) if small else struct.pack("<BH", 0x60, len(body) - 256)
        content = b"\x28\xb5\x2f\xfd" + header + (len(body) << 3 | 1).to_bytes(3, "little") + body
        yield _LENGTH.pack(len(content)) + content


def _frame(name: str, what: str, head: Head, payload: bytes, values: Tensor, **more: object) -> Vector:
    """A message with this payload, and the values that a reader finds in it."""
    head = replace(head, payload_size=len(payload), payload_digest=hashlib.sha256(payload).digest())
    prelude = pack_prelude(head)
    meaning = {
        "what": what,
        "head": describe(head),
        "head_digest": head_digest(head).hex(),
        "payload_offset": len(prelude),
        "values": values.tolist(),
        "values_sha256": weights_digest(values).hex(),
        **more,
    }
    return Vector(name, prelude + payload, meaning)


def _update_head(layout: Layout, codec: CodecSpec, sequence: int) -> UpdateHead:
    return UpdateHead("site-1", sequence, 7, 120, layout.digest, codec, 0, bytes(32), {"loss": 0.25})


def _updates(folder: Path) -> Iterator[Vector]:
    for sequence, (name, codec) in enumerate(CODECS.items()):
        layout = CHUNKED if codec.id is CodecId.TOPK2 else PLAIN
        values = numbers(layout.numel)
        decoded = torch.empty_like(values)
        payload = b"".join(_stored(encode(values, codec, residual=decoded)))
        decoded = values - decoded
        head = _update_head(layout, codec, sequence)
        yield _frame(
            f"update-{name}", f"An update in the codec {name}.", head, payload, decoded, encoded=values.tolist()
        )
    values = numbers(BUFFERED.numel)
    parameters, buffers = BUFFERED.parts(values)
    payload = b"".join(_stored(with_buffers(encode(parameters, CODECS["float32"]), buffers)))
    head = _update_head(BUFFERED, CODECS["float32"], 90)
    what = "An update of a layout with a buffer: the deltas of the parameters, then the buffer's values."
    yield _frame("update-buffers", what, head, payload, values, tensors=[spec.row for spec in BUFFERED.tensors])
    yield from _fragments()
    yield _compressed(folder / "update-compressed.bin")


def _fragments() -> Iterator[Vector]:
    """An update of each of two fragments: of parameters alone, and of parameters and the buffer that is the end."""
    whole = {"tensors": [spec.row for spec in BUFFERED.tensors], "fragments": [list(one.range) for one in CUT]}
    for place, (fragment, name) in enumerate(zip(CUT, ("int8", "float32"), strict=True)):
        values, codec = numbers(fragment.numel, 41 + place), CODECS[name]
        parameters, buffers = values[: fragment.parameters], values[fragment.parameters :]
        rest = torch.empty_like(parameters)
        payload = b"".join(_stored(with_buffers(encode(parameters, codec, residual=rest), buffers)))
        head = replace(_update_head(BUFFERED, codec, 92 + place), layout_digest=fragment.digest, range=fragment.range)
        what = f"An update of fragment {place} of a model that is cut into {len(CUT)}; `tensors` are the whole model's."
        decoded = torch.cat([parameters - rest, buffers])
        yield _frame(f"update-fragment-{place}", what, head, payload, decoded, **whole)


def _compressed(file: Path) -> Vector:
    values = numbers(COMPRESSED.numel)
    codec = CODECS["int8"]
    rest = torch.empty_like(values)
    made = b"".join(encode(values, codec, residual=rest))
    head = _update_head(COMPRESSED, codec, 91)
    if file.is_file():
        data = file.read_bytes()
        size = len(pack_prelude(replace(head, payload_size=len(made), payload_digest=bytes(32))))
        kept = data[size:]
        if _body(kept) == _body(made):
            made = kept
    return _frame("update-compressed", "An update whose payload zstd has compressed.", head, made, values - rest)


def _body(frame: bytes) -> bytes | None:
    try:
        return zstandard.ZstdDecompressor().decompress(frame[_LENGTH.size :])
    except zstandard.ZstdError:
        return None


def _versions() -> Iterator[Vector]:
    for layout, name in ((PLAIN, "chain"), (BUFFERED, "chain-buffers")):
        yield from _chain(layout, name)
    yield from _chain(BUFFERED, "chain-fragments", CUT)
    moment = numbers(PLAIN.parameters, 11)
    head = SnapshotHead(2, "momentum", PLAIN.digest, CODECS["float32"], 0, bytes(32))
    payload = b"".join(_stored(encode(moment, head.codec)))
    yield _frame("snapshot", "A moment of the server optimiser; only aggregators read these.", head, payload, moment)
    weights = numbers(PLAIN.numel, 13)
    own = LocalModelHead("site-1", 9, 9, PLAIN.digest, CODECS["float32"], 0, bytes(32))
    payload = b"".join(_stored(encode(weights, own.codec)))
    yield _frame(
        "local-model",
        "What a site has trained alone and shares; its payload is as a full version's.",
        own,
        payload,
        weights,
    )


def _chain(layout: Layout, name: str, cut: Sequence[Fragment] = ()) -> Iterator[Vector]:
    """A full version and two deltas. What the first leaves out goes into the second.

    Of a model that is cut, each of three moves one fragment, and a fourth, which is full, gives what all have left out.
    """
    weights, parent = numbers(layout.numel), None
    residuals: dict[tuple[int, int] | None, Residual] = {}
    for number in range(5 if cut else 3):
        elements = cut[(number - 1) % len(cut)].range if cut and number else None
        kind = VersionKind.FULL if number % 4 == 0 else VersionKind.FRAGMENT if cut else VersionKind.DELTA
        before, weights = weights, weights.clone()
        if number:
            here = slice(*elements) if elements else slice(None)
            weights[here] += (numbers(layout.numel, 23 + number) / 8)[here]
        if kind is VersionKind.FULL:
            pay(weights, layout, residuals)
            frames: Iterable[bytes] = encode(weights, CODECS["float32"])
        else:
            (old, _), (new, values) = (layout.moving(flat, elements) for flat in (before, weights))
            encoded = encode_delta(old, new, residuals.get(elements), _CHAIN)
            residuals[elements] = encoded.residual
            frames = with_buffers(encoded.parts, values) if len(values) else encoded.parts
        payload = b"".join(_stored(frames))
        head = VersionHead(
            number=number,
            parent=number - 1 if number else None,
            kind=kind,
            layout_digest=layout.digest,
            codec=CODECS["float32"] if kind is VersionKind.FULL else _CHAIN,
            payload_size=len(payload),
            payload_digest=hashlib.sha256(payload).digest(),
            weights_digest=weights_digest(weights),
            time_ms=TIME_MS + number,
            manifest=_manifest(number),
            tensors=layout.tensors if kind is VersionKind.FULL else None,
            rule={"aggregation": {"buffer_size": 2, "fragments": len(cut)}} if cut else _RULE,
            build={"torch": "2.4.0", "cpu": "x86_64"},
            parent_digest=bytes(32) if parent is None else head_digest(parent),
            range=elements,
        )
        parent = head
        what = f"Version {number} of a chain: {kind.value}. `values` are the weights once it is applied."
        yield _frame(f"{name}-{number}", what, head, payload, weights)


def _manifest(number: int) -> tuple[Contribution, ...]:
    digest = hashlib.sha256(b"a payload").digest()
    one = Contribution("site-1", number, 0, 10 * number, 120, 0, 120.0, 1.0, digest)
    other = Contribution("site-2", 3 * number, 1, 10 * number + 4, 80, 1, 56.5, 0.75, digest)
    return (one, other) if number else ()


def _chunks() -> Iterator[Vector]:
    payload = b"".join(_stored(encode(numbers(PLAIN.numel), CODECS["int8"])))
    head = replace(
        _update_head(PLAIN, CODECS["int8"], 3),
        payload_size=len(payload),
        payload_digest=hashlib.sha256(payload).digest(),
    )
    identifier = message_id("site-1", 3)
    records = list(split(pack_prelude(head), [payload], len(payload), identifier, 128))
    for index, record in enumerate(records):
        meaning = {
            "what": "A record's value: the message of update-int8.bin, cut every 128 bytes.",
            "topic": "updates",
            "key": "site-1",
            "message_id": identifier.hex(),
            "index": index,
            "count": len(records),
        }
        yield Vector(f"chunk-{index}", record, meaning)


def _record(name: str, what: str, topic: str, key: str, value: bytes) -> Vector:
    return Vector(name, value, {"what": what, "topic": topic, "key": key, "value": json.loads(value)})


def _control() -> Iterator[Vector]:
    for name, key, what, value in _settings():
        assert value is not None
        yield _record(f"control-{name}", what, "control", key, value)


def _settings() -> Iterator[tuple[str, str, str, bytes | None]]:
    full = Pointer(0, 0, 0)
    newest = replace(full, version=2, offset=4, full=full)
    what = "Where the newest version begins in `<f>.models`, and the full version that it stands on."
    yield "latest", "latest", what, dump_setting(newest)
    yield "latest-full", "latest", what, dump_setting(full)
    leader = Leader(3, "host:1234", pace_seconds=0.5, lag=2)
    yield "aggregator", "aggregator", "Who leads, and the pace of clients.", dump_setting(leader)
    ended = RunEnd("target", "accuracy 0.97 at version 40", 40, {"target": 0.97})
    yield "run-finished", "run", "The run has ended: clients send no more.", dump_run_end(ended)
    yield "run-running", "run", "The run goes on, although it had ended.", dump_running(40)
    yield "paused", "paused", "Training should rest.", dump_paused(True, TIME_MS)
    yield "finish", "finish", "An operator asks for the end of the run.", dump_finish(TIME_MS)
    promotion = Promotion(12, (10,), TIME_MS)
    yield "promoted", "promoted", "The version to serve, and those promoted before.", dump_setting(promotion)
    state = Checkpoint(2, TIME_MS, events=5, evaluations=3, snapshots={"momentum": 4}, bases=0)
    what = "What an aggregator must know beside the newest version; only aggregators read it."
    yield "state", "state", what, dump_setting(state)
    what = "Which of a client's updates were folded; only aggregators read it."
    yield "sequences", "sequences/site-1", what, dump_sequences([3, 2, 1])


_SITE = {"client_id": "site-1"}
_PLACE = {"partition": 0, "offset": 17}
_EVENTS: Mapping[EventKind, tuple[Role, Mapping[str, object]]] = {
    EventKind.CLIENT_JOINED: (Role.CLIENT, {**_SITE, "num_examples": 120}),
    EventKind.CLIENT_LEFT: (Role.CLIENT, {**_SITE, "reason": "the run has ended", "updates": 9}),
    EventKind.UPDATE_SENT: (
        Role.CLIENT,
        {
            **_SITE,
            "sequence": 3,
            "base_version": 7,
            "num_examples": 120,
            "raw_bytes": 164,
            "sent_bytes": 300,
            "train_seconds": 1.5,
            "encode_seconds": 0.25,
            "metrics": {"loss": 0.25},
        },
    ),
    EventKind.UPDATE_FOLDED: (
        Role.AGGREGATOR,
        {
            **_SITE,
            **_PLACE,
            "sequence": 3,
            "staleness": 1,
            "weight": 84.5,
            "clip": 1.0,
            "num_examples": 120,
            "version": 9,
        },
    ),
    EventKind.UPDATE_DUPLICATE: (Role.AGGREGATOR, {**_SITE, **_PLACE, "sequence": 3}),
    EventKind.UPDATE_REJECTED: (
        Role.AGGREGATOR,
        {
            **_SITE,
            **_PLACE,
            "sequence": 4,
            "reason": Reason.TOO_STALE.value,
            "detail": "on version 1, which is too old",
        },
    ),
    EventKind.VERSION_PUBLISHED: (
        Role.AGGREGATOR,
        {"version": 9, "parent": 8, "contributions": 2, "mean_staleness": 0.5},
    ),
    EventKind.EVALUATION: (
        Role.EVALUATOR,
        {"version": 9, "metrics": {"accuracy": 0.75, "loss": 0.5}, "num_examples": 360, "seconds": 0.125},
    ),
    EventKind.MODEL_COLLAPSED: (Role.AGGREGATOR, {"version": 9, "loss": 50.0, "limit": 2.5, "best_version": 8}),
    EventKind.RUN_FINISHED: (Role.AGGREGATOR, {"reason": "target", "detail": "accuracy 0.97", "version": 40}),
    EventKind.RUN_RESUMED: (Role.AGGREGATOR, {"version": 40}),
}


def _events() -> Iterator[Vector]:
    for kind in EventKind:
        role, data = _EVENTS[kind]
        value = dump_event(Event(kind, role, TIME_MS, data))
        assert load_event(value).data == data
        topic = "evaluations" if kind is EventKind.EVALUATION else "events"
        key = "site-1" if role is Role.CLIENT else role.value
        name = "evaluation" if kind is EventKind.EVALUATION else f"event-{kind.value.replace('_', '-')}"
        yield _record(name, f"{kind.value.replace('_', ' ').capitalize()}.", topic, key, value)


def _quarantine() -> Iterator[Vector]:
    head = _update_head(PLAIN, CODECS["int8"], 4)
    refusal = Refusal(Reason.TOO_STALE, "on version 1, which is too old", head, b"", b"site-1", 0, 17)
    key, value = dump_quarantined(refusal, "ward.updates", TIME_MS)
    assert key is not None
    yield _record("quarantine", "An update that was refused.", "quarantine", key.decode(), value)
