"""The test vectors that ship with the documentation are those that the code makes, and readers take them."""

import json
from pathlib import Path

import pytest
import torch

from llmos_stream.codec import Layout, apply_delta, decode, weights_digest
from llmos_stream.types import CodecId, EventKind, TopicKind, UpdateHead, VersionHead, VersionKind
from llmos_stream.wire import Assembler, Message, unpack_prelude
from tests.docs.pages import DOCS
from tests.vectors.make import BUFFERED, CHUNKED, COMPRESSED, CUT, PLAIN, Vector, vectors, write

FOLDER = DOCS / "vectors"
MADE = {vector.name: vector for vector in vectors(FOLDER)}
FRAGMENTS = Layout(BUFFERED.tensors[:1]), Layout(BUFFERED.tensors[1:])
LAYOUTS = {layout.digest: layout for layout in (PLAIN, BUFFERED, CHUNKED, COMPRESSED, *FRAGMENTS)}


def test_the_files_are_those_that_are_made() -> None:
    names = {f"{name}.{kind}" for name in MADE for kind in ("bin", "json")}
    assert {file.name for file in FOLDER.iterdir()} == names, "python -m tests.vectors makes them anew"


@pytest.mark.parametrize("name", MADE)
def test_every_byte_of_a_file_is_as_it_is_made(name: str) -> None:
    assert (FOLDER / f"{name}.bin").read_bytes() == MADE[name].data
    assert (FOLDER / f"{name}.json").read_text() == MADE[name].text


def test_a_changed_byte_shows(tmp_path: Path) -> None:
    """The comparison above can fail: what is written anew does not depend on what was there."""
    folder = tmp_path / "vectors"
    write(folder)
    file = folder / "update-compressed.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = {vector.name: vector for vector in vectors(folder)}["update-compressed"]
    assert again.data != bytes(data)


def test_they_cover_every_kind_of_frame_topic_event_and_codec() -> None:
    meanings = [json.loads(vector.text) for vector in MADE.values()]
    topics = {meaning["topic"] for meaning in meanings if "topic" in meaning}
    assert topics == {kind.value for kind in TopicKind} - {"models", "snapshots", "locals"}, "these hold frames"
    assert {meaning["value"]["kind"] for meaning in meanings if meaning.get("topic") in {"events", "evaluations"}} == {
        kind.value for kind in EventKind
    }
    heads = [meaning["head"] for meaning in meanings if "head_digest" in meaning]
    assert {head["codec"] for head in heads} == {codec.label for codec in CodecId}
    frames = {"update", "full version", "delta version", "fragment version", "snapshot", "local model"}
    assert {head["kind"] for head in heads} == frames


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("update-")])
def test_an_update_decodes_to_the_values_named(name: str) -> None:
    vector = MADE[name]
    head, payload = _read(vector)
    assert isinstance(head, UpdateHead)
    layout = LAYOUTS[head.layout_digest]
    flat = torch.empty(layout.numel)
    parameters, buffers = layout.parts(flat)
    decode([payload], head.codec, layout.parameters, parameters, buffers if len(buffers) else None)
    assert flat.tolist() == vector.meaning["values"]


def test_an_update_of_each_fragment_is_there() -> None:
    meanings = [MADE[f"update-fragment-{place}"].meaning for place in range(2)]
    heads = [_read(MADE[f"update-fragment-{place}"])[0] for place in range(2)]
    for head, fragment, layout in zip(heads, CUT, FRAGMENTS, strict=True):
        assert isinstance(head, UpdateHead)
        assert (head.range, head.layout_digest) == (fragment.range, fragment.digest)
        assert fragment.digest == layout.digest
    for meaning in meanings:
        assert meaning["fragments"] == [[0, 36], [36, BUFFERED.numel]]
        assert meaning["tensors"] == [spec.row for spec in BUFFERED.tensors]


@pytest.mark.parametrize("name", ["chain", "chain-buffers", "chain-fragments"])
def test_a_chain_ends_at_the_weights_that_each_head_names(name: str) -> None:
    weights = torch.empty(0)
    names = [made for made in MADE if made.rpartition("-")[0] == name]
    assert len(names) == (5 if name == "chain-fragments" else 3)
    moved = []
    for number in range(len(names)):
        vector = MADE[f"{name}-{number}"]
        head, payload = _read(vector)
        assert isinstance(head, VersionHead)
        layout = LAYOUTS[head.layout_digest]
        if head.kind is VersionKind.FULL:
            weights = decode([payload], head.codec, layout.numel)
        else:
            parameters, buffers = layout.moving(weights, head.range)
            apply_delta(parameters, [payload], head.codec, buffers if len(buffers) else None)
        assert weights_digest(weights) == head.weights_digest
        assert weights.tolist() == vector.meaning["values"]
        moved.append(head.range)
    cut = [None, CUT[0].range, CUT[1].range, CUT[0].range, CUT[1].range]
    assert moved == (cut if name == "chain-fragments" else [None] * 3)


def test_the_chunks_make_the_update() -> None:
    assembler = Assembler(lambda prelude: None, 1 << 20)
    outcomes = [
        outcome
        for offset, name in enumerate(sorted(name for name in MADE if name.startswith("chunk-")))
        for outcome in assembler.push(MADE[name].data, key=b"site-1", partition=0, offset=offset, now=0.0)
    ]
    (message,) = outcomes
    assert isinstance(message, Message)
    assert MADE["update-int8"].data.endswith(b"".join(bytes(part) for part in message.parts))


def _read(vector: Vector) -> tuple[object, bytes]:
    prelude = unpack_prelude(vector.data)
    assert prelude is not None
    assert prelude.size == vector.meaning["payload_offset"]
    return prelude.head, vector.data[prelude.size :]
