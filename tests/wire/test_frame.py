"""The prelude: its bytes, its round trip, its limits and every way to be wrong."""

import hashlib
import math
import struct
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import (
    CodecId,
    CodecSpec,
    Contribution,
    Head,
    LocalModelHead,
    Part,
    SnapshotHead,
    TensorKind,
    TensorSpec,
    UpdateHead,
    VersionHead,
    VersionKind,
)
from llmos_stream.wire import (
    MAX_PRELUDE_BYTES,
    MAX_SIGNATURE_BYTES,
    pack_prelude,
    payload_digest,
    prelude_needs,
    unpack_prelude,
)
from llmos_stream.wire.frame import FrameKind
from tests.wire import heads
from tests.wire.heads import CONTRIBUTION, LOCAL_MODEL, PROPERTY, SNAPSHOT, UPDATE, VERSION, update, version

LARGEST = 2**63 - 1
ELEVEN, TWENTYTWO, THIRTYTHREE = "c420" + "11" * 32, "c420" + "22" * 32, "c420" + "33" * 32

GOLDEN_UPDATE = (
    "95 a5 4c4c4d4f53 01 01 c6 000000a1"
    "8a"
    "a6 636c69656e74 a3 632d31"  # client: c-1
    "a3 736571 07"  # seq: 7
    "a4 62617365 03"  # base: 3
    "a1 6e 78"  # n: 120
    f"a6 6c61796f7574 {ELEVEN}"  # layout
    "a5 636f646563 04"  # codec: 4
    "a6 706172616d73 81 a5 626c6f636b cd0100"  # params: block 256
    "a4 73697a65 05"  # size: 5
    f"a6 646967657374 {TWENTYTWO}"  # digest
    "a7 6d657472696373 81 a4 6c6f7373 cb3fe0000000000000"  # metrics: loss 0.5
    "c0"
)
GOLDEN_VERSION = (
    "95 a5 4c4c4d4f53 01 02 c6 00000165"
    "8e"
    "a6 6e756d626572 04"  # number: 4
    "a6 706172656e74 03"  # parent: 3
    "a4 6b696e64 a4 66756c6c"  # kind: full
    f"a6 6c61796f7574 {ELEVEN}"  # layout
    "a5 636f646563 01"  # codec: 1
    "a6 706172616d73 80"  # params: none
    "a4 73697a65 00"  # size: 0
    f"a6 646967657374 {TWENTYTWO}"  # digest
    f"a7 77656967687473 {THIRTYTHREE}"  # weights
    "a4 74696d65 cd03e8"  # time: 1000
    "a4 72756c65 82 a9 636c69705f6e6f726d c0"  # rule: clip_norm nil
    "a9 7374616c656e657373 82 a4 6b696e64 aa 706f6c796e6f6d69616c a1 61 cb3fe0000000000000"  # staleness
    "a5 6275696c64 82 a5 746f726368 a5 322e342e30 a3 637075 a3 783836"  # build: torch 2.4.0, cpu x86
    "a8 6d616e6966657374 91 99 a3 632d31 07 00 29 78 01"  # manifest: c-1 7 0 41 120 1
    f"cb4000000000000000 cb3ff0000000000000 {TWENTYTWO}"  # weight 2.0, clip 1.0, digest
    "a7 74656e736f7273 91 93 a1 77 92 02 03 a7 666c6f61743332"  # tensors: w [2, 3] float32
    "c0"
)

BUFFERED = version(tensors=(*(VERSION.tensors or ()), TensorSpec("b", (4,), "float16", TensorKind.BUFFER)))
GOLDEN_BUFFERED = GOLDEN_VERSION.replace("c6 00000165", "c6 00000179").replace(
    "91 93 a1 77 92 02 03 a7 666c6f61743332",  # tensors: w [2, 3] float32
    "92 93 a1 77 92 02 03 a7 666c6f61743332 94 a1 62 91 04 a7 666c6f61743136 a6 627566666572",  # b [4] float16 buffer
)

GOLDEN_SNAPSHOT = (
    "95 a5 4c4c4d4f53 01 03 c6 00000081"
    "87"
    "a7 76657273696f6e 04"  # version: 4
    "a6 74656e736f72 a8 6d6f6d656e74756d"  # tensor: momentum
    f"a6 6c61796f7574 {ELEVEN}"  # layout
    "a5 636f646563 01"  # codec: 1
    "a6 706172616d73 80"  # params: none
    "a4 73697a65 05"  # size: 5
    f"a6 646967657374 {TWENTYTWO}"  # digest
    "c0"
)

GOLDEN_LOCAL_MODEL = (
    "95 a5 4c4c4d4f53 01 04 c6 00000083"
    "88"
    "a6 636c69656e74 a3 632d31"  # client: c-1
    "a7 76657273696f6e 04"  # version: 4
    "a5 73696e6365 03"  # since: 3
    f"a6 6c61796f7574 {ELEVEN}"  # layout
    "a5 636f646563 01"  # codec: 1
    "a6 706172616d73 80"  # params: none
    "a4 73697a65 05"  # size: 5
    f"a6 646967657374 {TWENTYTWO}"  # digest
    "c0"
)


def frame(head: dict[str, Any] | bytes, kind: int = 1, last: bytes = b"\xc0") -> bytes:
    packed = head if isinstance(head, bytes) else msgpack.packb(head)
    return b"\x95\xa5LLMOS\x01" + bytes([kind, 0xC6]) + struct.pack(">I", len(packed)) + packed + last


def update_map(**changes: Any) -> dict[str, Any]:
    made = {
        "client": "c-1",
        "seq": 7,
        "base": 3,
        "n": 120,
        "layout": b"\x11" * 32,
        "codec": 4,
        "params": {"block": 256},
        "size": 5,
        "digest": b"\x22" * 32,
        "metrics": {"loss": 0.5},
    }
    return made | changes


def version_map(**changes: Any) -> dict[str, Any]:
    made = {
        "number": 4,
        "parent": 3,
        "kind": "full",
        "layout": b"\x11" * 32,
        "codec": 1,
        "params": {},
        "size": 0,
        "digest": b"\x22" * 32,
        "weights": b"\x33" * 32,
        "time": 1000,
        "manifest": [["c-1", 7, 0, 41, 120, 1, 2.0, 1.0, b"\x22" * 32]],
        "tensors": [["w", [2, 3], "float32"]],
        "rule": {"clip_norm": None, "staleness": {"kind": "polynomial", "a": 0.5}},
        "build": {"torch": "2.4.0", "cpu": "x86"},
    }
    return made | changes


def without(made: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key not in keys}


def contribution(**changes: Any) -> dict[str, Any]:
    """A version whose one contribution has items replaced."""
    names = ("client", "seq", "partition", "offset", "n", "staleness", "weight", "clip", "digest")
    made = dict(zip(names, version_map()["manifest"][0], strict=True)) | changes
    return version_map(manifest=[list(made.values())])


def read(data: bytes) -> Head:
    prelude = unpack_prelude(data)
    assert prelude is not None
    return prelude.head


def refused(data: bytes | memoryview) -> Reason:
    with pytest.raises(Rejected) as caught:
        unpack_prelude(data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("head", "golden"),
    [
        (UPDATE, GOLDEN_UPDATE),
        (VERSION, GOLDEN_VERSION),
        (BUFFERED, GOLDEN_BUFFERED),
        (SNAPSHOT, GOLDEN_SNAPSHOT),
        (LOCAL_MODEL, GOLDEN_LOCAL_MODEL),
    ],
)
def test_golden_bytes(head: Head, golden: str) -> None:
    data = bytes.fromhex(golden)
    assert pack_prelude(head) == data
    prelude = unpack_prelude(data + b"payload")
    assert prelude is not None
    assert (prelude.head, prelude.size, prelude.signature) == (head, len(data), None)


def test_a_prelude_is_one_msgpack_array() -> None:
    name, version_, kind, packed, signature = msgpack.unpackb(pack_prelude(UPDATE, b"s" * 70))
    assert (name, version_, kind, signature) == ("LLMOS", 1, FrameKind.UPDATE, b"s" * 70)
    assert msgpack.unpackb(packed) == update_map()


@PROPERTY
@given(heads.any_head, heads.signatures)
def test_round_trip(head: Head, signature: bytes | None) -> None:
    data = pack_prelude(head, signature)
    prelude = unpack_prelude(memoryview(data + b"\x00payload"))
    assert prelude is not None
    assert (prelude.head, prelude.size, prelude.signature) == (head, len(data), signature)


def test_a_digest_of_the_parent_is_read_back_and_left_out_where_there_is_none() -> None:
    chained = version(parent_digest=b"\x07" * 32)
    assert read(pack_prelude(chained)) == chained
    assert b"before" not in pack_prelude(VERSION)


def test_samples_set_every_field() -> None:
    """The round trip above and the golden bytes are of all fields, also of those added later."""
    for sample, bare in ((UPDATE, {"metrics"}), (VERSION, {"manifest", "tensors", "rule", "build"})):
        named = {field.name for field in fields(sample)}
        assert bare <= named
        assert all(getattr(sample, name) for name in bare)
    assert len(fields(UpdateHead)) == 10
    assert len(fields(VersionHead)) == 16
    assert len(fields(SnapshotHead)) == 6
    assert len(fields(LocalModelHead)) == 7
    assert len(fields(Contribution)) == 10


def test_a_range_is_read_back_and_left_out_where_there_is_none() -> None:
    one, moved = update(range=(6, 9)), version(kind=VersionKind.FRAGMENT, tensors=None, range=(6, 9))
    whole = version(range=(0, 6))
    for head in (one, moved, whole):
        assert read(pack_prelude(head)) == head
    assert read(frame(update_map(range=[6, 9]))) == one
    assert read(frame(update_map(range=[6, 9, "later"]))) == one
    assert b"range" not in pack_prelude(UPDATE) + pack_prelude(VERSION)
    for ends in (None, True, 6, [], [6], [6, 6], [9, 6], [-1, 6], [True, 6], [6, 2**63], [6.0, 9], {"a": 1}):
        assert refused(frame(update_map(range=ends))) is Reason.MALFORMED
        assert refused(frame(version_map(range=ends), kind=2)) is Reason.MALFORMED


def test_a_fragment_has_a_range_and_a_parent_and_a_delta_has_no_range() -> None:
    bare = without(version_map(kind="fragment", range=[6, 9]), "tensors")
    assert read(frame(bare, kind=2)) == version(kind=VersionKind.FRAGMENT, tensors=None, range=(6, 9))
    for made in (without(bare, "range"), without(bare, "parent"), bare | {"kind": "delta"}):
        assert refused(frame(made, kind=2)) is Reason.MALFORMED


def test_local_steps_are_a_tenth_item_and_left_out_where_there_are_none() -> None:
    counted = replace(VERSION.manifest[0], steps=12.0)
    made = version(manifest=(counted, replace(counted, steps=None)))
    assert read(pack_prelude(made)) == made
    row = version_map()["manifest"][0]
    assert read(frame(version_map(manifest=[[*row, 12.0]]), kind=2)) == version(manifest=(counted,))
    for steps in (0, -1.0, math.nan, math.inf, True, "12", None):
        assert refused(frame(version_map(manifest=[[*row, steps]]), kind=2)) is Reason.MALFORMED


@PROPERTY
@given(heads.any_head, heads.signatures)
def test_every_shorter_start_needs_more(head: Head, signature: bytes | None) -> None:
    data = pack_prelude(head, signature)
    had, rounds = 0, 0
    while (needed := prelude_needs(data[:had])) > had:
        assert unpack_prelude(data[: needed - 1]) is None
        had, rounds = needed, rounds + 1
    assert had == len(data)
    assert rounds <= 4


def test_no_number_of_first_bytes_raises() -> None:
    data = pack_prelude(UPDATE, b"s" * 300)
    for size in range(len(data)):
        assert unpack_prelude(data[:size]) is None
        assert size < prelude_needs(data[:size]) <= len(data)


def test_codec_enum_and_read_only_maps_are_packed_as_plain_values() -> None:
    head = update(codec=CodecSpec(CodecId.INT8, MappingProxyType({"block": 64})), metrics=MappingProxyType({"f1": 1}))
    assert read(pack_prelude(head)) == update(codec=CodecSpec(4, {"block": 64}), metrics={"f1": 1.0})


@pytest.mark.parametrize("since", [-1, 5, True, None, 2**63])
def test_a_local_model_begins_with_a_version_that_its_site_had(since: Any) -> None:
    head = msgpack.unpackb(bytes.fromhex(GOLDEN_LOCAL_MODEL)[14:-1])
    assert read(frame(head | {"since": 4}, kind=4)) == replace(LOCAL_MODEL, since=4)
    assert refused(frame(head | {"since": since}, kind=4)) is Reason.MALFORMED


def test_metrics_need_not_be_finite() -> None:
    head = read(pack_prelude(update(metrics={"a": math.nan, "b": math.inf, "c": -math.inf})))
    assert isinstance(head, UpdateHead)
    assert math.isnan(head.metrics["a"])
    assert (head.metrics["b"], head.metrics["c"]) == (math.inf, -math.inf)


def test_a_tensor_of_a_kind_that_this_release_does_not_know_is_unsupported() -> None:
    data = frame(version_map(tensors=[["w", [2, 3], "float32", "gradient"]]), kind=2)
    assert refused(data) is Reason.UNSUPPORTED


def test_optional_fields_may_be_left_out() -> None:
    assert read(frame(without(update_map(), "metrics", "params"))) == update(metrics={}, codec=CodecSpec(4))
    bare = without(version_map(kind="delta"), "params", "manifest", "tensors", "rule", "build")
    assert read(frame(bare, kind=2)) == version(
        kind=VersionKind.DELTA, codec=CodecSpec(1), manifest=(), tensors=None, rule={}, build={}
    )
    assert read(frame(without(version_map(), "parent"), kind=2)) == version(parent=None)


@pytest.mark.parametrize(
    "value",
    [None, 1, "x" * 9000, b"x" * 9000, list(range(1000)), {"a": [{"b": 1}]}, {1: 2}, msgpack.Timestamp(1, 2)],
)
def test_unknown_keys_are_ignored_whatever_they_hold(value: object) -> None:
    unknown = {"later": value}
    assert read(frame(unknown | update_map() | {"last": value})) == UPDATE
    assert read(frame(unknown | version_map(), kind=2)) == VERSION


def test_further_names_of_tied_tensors() -> None:
    made = version_map(tied=[["head.weight", "w"]])
    assert read(frame(made, kind=2)) == version(tied={"head.weight": "w"})
    assert read(frame(version_map(tied=[]), kind=2)) == VERSION
    for tied in (5, ["w"], [["w"]], [["\x1b[2J", "w"]], [["a", 5]], [["a" * 513, "w"]]):
        assert refused(frame(version_map(tied=tied), kind=2)) is Reason.MALFORMED


def test_items_after_the_known_ones_are_ignored() -> None:
    longer = version_map(
        manifest=[[*version_map()["manifest"][0], 12.0, "later", 1]],
        tensors=[["w", [2, 3], "float32", "parameter", {"later": 1}]],
    )
    counted = replace(VERSION.manifest[0], steps=12.0)
    assert read(frame(longer, kind=2)) == version(manifest=(counted,))


@pytest.mark.parametrize(
    "made",
    [
        *(without(update_map(), key) for key in ("client", "seq", "base", "n", "layout", "codec", "size", "digest")),
        *(update_map(**{key: True}) for key in update_map()),
        *(update_map(**{key: None}) for key in update_map()),
        *(update_map(**{key: 1.0}) for key in update_map()),
        *(update_map(**{key: -1}) for key in ("seq", "base", "size", "codec")),
        *(update_map(**{key: 2**63}) for key in ("seq", "base", "size", "codec", "n")),
        *(update_map(**{key: size * b"d"}) for key in ("layout", "digest") for size in (0, 31, 33, 64)),
        *(update_map(client=text) for text in ("", "-a", ".a", "a" * 129, "a b", "a\n", "é", b"c-1", "a/b")),
        *(update_map(params=value) for value in ({"a": True}, {"a": "b"}, {"a": 2**63}, {"": 1}, {"a" * 65: 1})),
        update_map(params={str(number): 1 for number in range(17)}),
        update_map(metrics={str(number): 1.0 for number in range(65)}),
        *(update_map(metrics=value) for value in ({"a": None}, {"a": True}, {"\x1b[2J": 1.0}, {"a" * 65: 1.0})),
        update_map(metrics={1: 1.0}),
        update_map(metrics={b"a": 1.0}),
        update_map(metrics=[1.0]),
        update_map(client=msgpack.ExtType(5, b"")),
        update_map(client=msgpack.Timestamp(1, 2)),
    ],
)
def test_malformed_updates(made: dict[str, Any]) -> None:
    assert refused(frame(made)) is Reason.MALFORMED


@pytest.mark.parametrize(
    "made",
    [
        *(without(version_map(), key) for key in ("number", "kind", "layout", "codec", "size", "digest", "weights")),
        without(version_map(), "time"),
        without(version_map(), "tensors"),
        without(version_map(kind="delta"), "parent"),
        *(version_map(**{key: True}) for key in version_map()),
        *(version_map(**{key: None}) for key in version_map() if key != "parent"),
        *(version_map(**{key: "x"}) for key in version_map() if key != "kind"),
        *(version_map(parent=parent) for parent in (-1, 4, 5)),
        version_map(number=0, parent=0),
        version_map(time=253_402_300_800_000),
        *(contribution(**{key: True}) for key in ("client", "seq", "partition", "offset", "n", "staleness", "weight")),
        *(contribution(**{key: -1}) for key in ("seq", "partition", "offset", "staleness", "digest")),
        *(contribution(**{key: math.nan}) for key in ("weight", "clip", "n")),
        *(contribution(**{key: -math.inf}) for key in ("weight", "clip")),
        version_map(manifest=[[]]),
        version_map(manifest=[version_map()["manifest"][0][:8]]),
        version_map(manifest=[5]),
        version_map(manifest={"a": 1}),
        version_map(manifest=[["c-1", 7, 0, 41, 120, 1, 2.0, 1.0, b"\x22" * 32, *range(64)]]),
        *(version_map(tensors=[item]) for item in (["w", [2]], ["w", 2, "f"], ["w", [-1], "f"], ["w", [True], "f"])),
        *(version_map(tensors=[item]) for item in (["", [2], "f"], ["w" * 513, [], "f"], ["w", [2], 5], "www")),
        version_map(tensors=[["w", [1] * 65, "f"]]),
        version_map(rule={"a": math.inf}),
        version_map(rule={"a": b"bytes"}),
        version_map(rule={"a": {b"bytes": 1}}),
        version_map(rule={"a": [[[[[[[[1]]]]]]]]}),
        version_map(rule={"a": list(range(65))}),
        version_map(rule={"a": {str(number): 1 for number in range(65)}}),
        version_map(rule={"a": msgpack.ExtType(5, b"")}),
        version_map(rule={"a": msgpack.Timestamp(1, 2)}),
        version_map(rule={"a": "x" * 4097}),
        version_map(build={"a": 1}),
    ],
)
def test_malformed_versions(made: dict[str, Any]) -> None:
    assert refused(frame(made, kind=2)) is Reason.MALFORMED


def test_a_rule_may_be_as_deep_and_as_wide_as_the_limits() -> None:
    rule = {"a": [[[[[[[1]]]]]]], **{str(number): list(range(64)) for number in range(63)}}
    assert read(frame(version_map(rule=rule), kind=2)) == version(rule=rule)


def test_the_maps_that_the_malformed_ones_vary_are_well_formed() -> None:
    assert read(frame(update_map())) == UPDATE
    assert read(frame(version_map(), kind=2)) == VERSION
    assert read(frame(contribution(), kind=2)) == VERSION


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x80",
        b"\x01",
        b"\x90",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1",
        b"\x81\xa3seq\xdd\xff\xff\xff\xff",
        b"\x81\xa6client\xdb\xff\xff\xff\xff",
        b"\x81\x01\x01",
        b"\x81\xc4\x03seq\x01",
        b"\x81\xa1\xff\x01",
        b"\x81\xa3seq" + b"\x91" * 5000 + b"\x01",
        b"\x81\xa5later" + b"\x91" * 5000 + b"\x01",
        msgpack.packb(update_map()) + b"\x00",
        msgpack.packb(update_map())[:-1],
        b"\x8b" + msgpack.packb(update_map())[1:] + b"\xa3seq\x07",
    ],
)
@pytest.mark.parametrize("kind", FrameKind)
def test_heads_that_are_not_one_map(head: bytes, kind: int) -> None:
    assert refused(frame(head, kind)) is Reason.MALFORMED


def test_a_value_within_limits_is_checked_in_every_item_of_a_list() -> None:
    good = version_map()["manifest"][0]
    assert refused(frame(version_map(manifest=[good] * 500 + [[*good[:8], b"short"]]), kind=2)) is Reason.MALFORMED
    head = read(frame(version_map(manifest=[good] * 500), kind=2))
    assert isinstance(head, VersionHead)
    assert head.manifest == (CONTRIBUTION,) * 500


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00", Reason.MALFORMED),
        (b"\x95\xa5LLMOT", Reason.MALFORMED),
        (b"GET / HTTP/1.1\r\n\r\n", Reason.MALFORMED),
        (frame(b"\x80")[:9] + b"\xc5" + frame(b"\x80")[10:], Reason.MALFORMED),
        (frame(b"\x80", kind=0), Reason.UNSUPPORTED),
        (frame(b"\x80", kind=5), Reason.UNSUPPORTED),
        (b"\x95\xa5LLMOS\x02\x01\xc6\x00\x00\x00\x00\xc0", Reason.UNSUPPORTED),
        (frame(version_map(kind="sketch"), kind=2), Reason.UNSUPPORTED),
        (frame(update_map(), last=b"\xc2"), Reason.MALFORMED),
        (frame(update_map(), last=b"\xc4\x01s"), Reason.MALFORMED),
        (frame(update_map(), last=b"\xc5\x00\x00"), Reason.MALFORMED),
        (frame(update_map(), last=b"\xc5\x04\x01" + b"s" * 1025), Reason.MALFORMED),
    ],
)
def test_frames_that_are_refused(data: bytes, reason: Reason) -> None:
    assert refused(data) is reason
    assert refused(memoryview(data)) is reason


def test_a_prelude_claimed_too_large_is_refused_from_its_opening() -> None:
    opening = b"\x95\xa5LLMOS\x01\x01\xc6"
    limit = MAX_PRELUDE_BYTES - len(opening) - 4 - 1
    assert unpack_prelude(opening + struct.pack(">I", limit)) is None
    assert refused(opening + struct.pack(">I", limit + 1)) is Reason.TOO_LARGE
    assert refused(opening + b"\xff\xff\xff\xff") is Reason.TOO_LARGE


def test_the_largest_buffer_and_a_large_layout_fit() -> None:
    worst = Contribution("c" * 128, LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, 0.1, 0.1, b"d" * 32, 0.1)
    layout = tuple(
        TensorSpec(f"model.layers.{number}.self_attn.q_proj", (4096, 4096), "bfloat16") for number in range(5000)
    )
    head = version(manifest=(worst,) * 2048, tensors=layout)
    data = pack_prelude(head)
    assert len(data) <= MAX_PRELUDE_BYTES
    assert read(data) == head


@pytest.mark.parametrize(
    "head",
    [
        update(client_id="no spaces"),
        update(sequence=-1),
        update(sequence=True),
        update(num_examples=2**63),
        update(num_examples=2**64),
        update(payload_digest="text"),
        update(codec=CodecSpec(4, {"block": True})),
        update(codec=CodecSpec(4, {"block": 2**63})),
        update(metrics={str(number): 1.0 for number in range(65)}),
        update(metrics={"a": "text"}),
        version(parent=4),
        version(tensors=None),
        version(kind=VersionKind.DELTA, parent=None),
        version(rule={"a": object()}),
        version(rule={"a": math.nan}),
        version(build={"a": "\ud800"}),
        version(manifest=(CONTRIBUTION,) * 15_000),
    ],
)
def test_what_no_reader_would_take_is_not_packed(head: Head) -> None:
    with pytest.raises(ValueError, match="head"):
        pack_prelude(head)


@pytest.mark.parametrize("size", [0, MAX_SIGNATURE_BYTES + 1])
def test_a_signature_of_a_wrong_size_is_not_packed(size: int) -> None:
    with pytest.raises(ValueError, match="signature"):
        pack_prelude(UPDATE, b"s" * size)


def test_payload_digest_does_not_depend_on_the_cuts() -> None:
    parts: list[Part] = [b"ab", memoryview(b"cde"), b"", b"f"]
    assert payload_digest(parts) == hashlib.sha256(b"abcdef").digest()
