"""The records of `<f>.quarantine` are as their specification says, and small whatever was sent."""

import re

import orjson

from llmos_stream.errors import Reason
from llmos_stream.types import Head
from llmos_stream.wire import Refusal, describe, quarantine
from tests.wire.heads import UPDATE


def _record(detail: str = "NaN", key: bytes = b"a", head: Head | None = UPDATE) -> tuple[bytes | None, bytes]:
    refusal = Refusal(Reason.NOT_FINITE, detail, head, b"\0\xff", key, 3, 7)
    return quarantine.dump_quarantined(refusal, "f.updates", 1_700_000_000_000)


def test_golden() -> None:
    key, value = _record(head=None)
    assert key == b"a"
    assert value == (
        b'{"reason":"not_finite","detail":"NaN","topic":"f.updates","partition":3,"offset":7,'
        b'"time_ms":1700000000000,"head":null,"head_bytes":"AP8="}'
    )


def test_the_specification_names_every_field() -> None:
    _, value = _record()
    named = re.findall(r"^(\w+) {2,}", quarantine.__doc__ or "", re.MULTILINE)
    assert named == ["key", "value", *orjson.loads(value)]


def test_a_head_is_described_without_its_lists() -> None:
    assert orjson.loads(_record()[1])["head"] == describe(UPDATE, full=False)


def test_what_was_sent_does_not_make_it_large() -> None:
    key, value = _record(detail="x" * 1_000_000, key=b"k" * 1_000_000)
    assert key == b"k" * 256
    assert orjson.loads(value)["detail"] == "x" * 1000
    assert _record(key=b"")[0] is None
