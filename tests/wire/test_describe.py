"""A head as plain data: nothing left out, always JSON, small where it must be."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given

from llmos_stream.types import CodecId, CodecSpec, Contribution, Head, TensorSpec
from llmos_stream.wire import describe, pack_prelude
from tests.wire import heads
from tests.wire.heads import CONTRIBUTION, PROPERTY, UPDATE, VERSION, update, version


def test_update() -> None:
    assert describe(UPDATE) == {
        "kind": "update",
        "client_id": "c-1",
        "sequence": 7,
        "base_version": 3,
        "num_examples": 120,
        "metrics": {"loss": 0.5},
        "layout_digest": "11" * 32,
        "codec": "int8",
        "codec_params": {"block": 256},
        "payload_size": 5,
        "payload_digest": "22" * 32,
        "signature": None,
    }


def test_the_range_of_a_fragment() -> None:
    assert describe(update(range=(6, 9))) == {**describe(UPDATE), "range": [6, 9]}
    assert describe(version(range=(6, 9)), full=False)["range"] == [6, 9]


def test_version() -> None:
    assert describe(VERSION, signature=b"\xab\xcd") == {
        "kind": "full version",
        "number": 4,
        "parent": 3,
        "parent_digest": None,
        "weights_digest": "33" * 32,
        "time": "1970-01-01T00:00:01.000+00:00",
        "manifest": [
            {
                "client_id": "c-1",
                "sequence": 7,
                "partition": 0,
                "offset": 41,
                "num_examples": 120,
                "staleness": 1,
                "weight": 2.0,
                "clip": 1.0,
                "payload_digest": "22" * 32,
            }
        ],
        "tensors": [{"name": "w", "shape": [2, 3], "dtype": "float32", "kind": "parameter"}],
        "tied": None,
        "rule": {"clip_norm": None, "staleness": {"kind": "polynomial", "a": 0.5}},
        "build": {"torch": "2.4.0", "cpu": "x86"},
        "layout_digest": "11" * 32,
        "codec": "float32",
        "codec_params": {},
        "payload_size": 0,
        "payload_digest": "22" * 32,
        "signature": "abcd (not verified)",
    }


def _described(head: Head) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(describe(head)))
    return found


def test_every_field_is_there() -> None:
    for head in (UPDATE, VERSION):
        expected = {field.name for field in fields(head)} - {"time_ms", "range"}
        assert expected <= set(describe(head))
    (item,) = _described(VERSION)["manifest"]
    named = {field.name for field in fields(Contribution)}
    assert set(item) == named - {"steps"}  # which no rule but one counts
    (counted,) = _described(replace(VERSION, manifest=(replace(VERSION.manifest[0], steps=12.0),)))["manifest"]
    assert (set(counted), counted["steps"]) == (named, 12.0)


@pytest.mark.parametrize("codec", CodecId)
def test_codecs_have_their_names(codec: CodecId) -> None:
    assert describe(update(codec=CodecSpec(int(codec))))["codec"] == codec.name.lower()


def test_a_codec_of_a_later_release_shows_its_id() -> None:
    assert describe(update(codec=CodecSpec(77)))["codec"] == "unknown (77)"


def test_numbers_that_json_cannot_say() -> None:
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    assert describe(update(metrics=metrics))["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.5}


def test_the_last_time_that_a_head_may_name() -> None:
    assert describe(version(time_ms=253_402_300_799_999))["time"] == "9999-12-31T23:59:59.999+00:00"


@PROPERTY
@given(heads.updates | heads.versions, heads.signatures)
def test_always_json(head: Head, signature: bytes | None) -> None:
    for full in (True, False):
        found = describe(head, signature=signature, full=full)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert json.loads(orjson.dumps(found)) == found


def test_the_short_form_counts() -> None:
    short = describe(version(manifest=(CONTRIBUTION,) * 3), full=False)
    assert (short["contributions"], short["tensors"]) == (3, 1)
    assert not {"manifest", "rule", "build"} & set(short)
    assert describe(version(tensors=None), full=False)["tensors"] is None
    assert describe(UPDATE, full=False) == describe(UPDATE)


def test_the_short_form_is_small_for_the_largest_heads() -> None:
    wide = "\N{GRINNING FACE}" * 60
    largest_update = update(
        client_id="c" * 128,
        codec=CodecSpec(4, {f"{wide}{number:04}": 2**63 - 1 for number in range(16)}),
        metrics={f"{wide}{number:04}": math.pi for number in range(64)},
    )
    largest_version = version(
        manifest=(CONTRIBUTION,) * 8000,
        tensors=(TensorSpec("w", (1,), "float32"),) * 1000,
        rule={str(number): "r" * 1000 for number in range(64)},
    )
    for head in (largest_update, largest_version):
        pack_prelude(head)  # it is a head that can be on the wire
        assert len(json.dumps(describe(head, signature=b"s" * 1024, full=False))) < 100_000


def test_local_model() -> None:
    found = describe(heads.LOCAL_MODEL)
    assert (found["kind"], found["client_id"], found["version"], found["since"]) == ("local model", "c-1", 4, 3)


def test_snapshot() -> None:
    assert describe(heads.SNAPSHOT) == {
        "kind": "snapshot",
        "version": 4,
        "tensor": "momentum",
        "layout_digest": "11" * 32,
        "codec": "float32",
        "codec_params": {},
        "payload_size": 5,
        "payload_digest": "22" * 32,
        "signature": None,
    }
