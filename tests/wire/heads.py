"""Heads to test with: one plain update, one plain version, and strategies for all of them."""

import string
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from llmos_stream.types import (
    CodecSpec,
    Contribution,
    LocalModelHead,
    SnapshotHead,
    TensorKind,
    TensorSpec,
    UpdateHead,
    VersionHead,
    VersionKind,
)

PROPERTY = settings(deadline=None, max_examples=150)  # no deadline: the machine may be busy with other things

UPDATE = UpdateHead(
    client_id="c-1",
    sequence=7,
    base_version=3,
    num_examples=120,
    layout_digest=b"\x11" * 32,
    codec=CodecSpec(4, {"block": 256}),
    payload_size=5,
    payload_digest=b"\x22" * 32,
    metrics={"loss": 0.5},
)
CONTRIBUTION = Contribution("c-1", 7, 0, 41, 120, 1, 2.0, 1.0, b"\x22" * 32)
VERSION = VersionHead(
    number=4,
    parent=3,
    kind=VersionKind.FULL,
    layout_digest=b"\x11" * 32,
    codec=CodecSpec(1),
    payload_size=0,
    payload_digest=b"\x22" * 32,
    weights_digest=b"\x33" * 32,
    time_ms=1000,
    manifest=(CONTRIBUTION,),
    tensors=(TensorSpec("w", (2, 3), "float32"),),
    rule={"clip_norm": None, "staleness": {"kind": "polynomial", "a": 0.5}},
    build={"torch": "2.4.0", "cpu": "x86"},
)

SNAPSHOT = SnapshotHead(
    version=4,
    tensor="momentum",
    layout_digest=b"\x11" * 32,
    codec=CodecSpec(1),
    payload_size=5,
    payload_digest=b"\x22" * 32,
)

LOCAL_MODEL = LocalModelHead(
    client_id="c-1",
    version=4,
    since=3,
    layout_digest=b"\x11" * 32,
    codec=CodecSpec(1),
    payload_size=5,
    payload_digest=b"\x22" * 32,
)


def update(**changes: Any) -> UpdateHead:
    return replace(UPDATE, **changes)


def version(**changes: Any) -> VersionHead:
    return replace(VERSION, **changes)


ints = st.integers(0, 2**63 - 1)
any_ints = st.integers(-(2**63), 2**63 - 1)
digests = st.binary(min_size=32, max_size=32)
client_ids = st.builds(
    str.__add__,
    st.sampled_from(string.ascii_letters + string.digits),
    st.text(string.ascii_letters + string.digits + "._-", max_size=127),
)
names = st.text(min_size=1, max_size=64).filter(str.isprintable)
finite = st.floats(allow_nan=False, allow_infinity=False)
codecs = st.builds(CodecSpec, ints, st.dictionaries(names, any_ints | finite, max_size=16))
json_like = st.recursive(
    st.none() | st.booleans() | any_ints | finite | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
counts_of_steps = st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False)
contributions = st.builds(
    Contribution, client_ids, ints, ints, ints, any_ints, ints, finite, finite, digests, counts_of_steps
)
tensors = st.builds(TensorSpec, names, st.lists(ints, max_size=6).map(tuple), names, st.sampled_from(TensorKind))
ranges = st.tuples(ints, ints).filter(lambda ends: ends[0] < ends[1])
updates = st.builds(
    UpdateHead,
    client_id=client_ids,
    sequence=ints,
    base_version=ints,
    num_examples=any_ints,
    layout_digest=digests,
    codec=codecs,
    payload_size=ints,
    payload_digest=digests,
    metrics=st.dictionaries(names, st.floats(allow_nan=False), max_size=64),
    range=st.none() | ranges,
)

snapshots = st.builds(
    SnapshotHead,
    version=ints,
    tensor=names,
    layout_digest=digests,
    codec=codecs,
    payload_size=ints,
    payload_digest=digests,
)

local_models = st.builds(
    lambda first, second, **others: LocalModelHead(since=min(first, second), version=max(first, second), **others),
    ints,
    ints,
    client_id=client_ids,
    layout_digest=digests,
    codec=codecs,
    payload_size=ints,
    payload_digest=digests,
)


@st.composite
def _versions(draw: st.DrawFn) -> VersionHead:
    kind = draw(st.sampled_from(VersionKind))
    number = draw(st.integers(1, 2**63 - 1))
    parents = st.integers(0, number - 1)
    laid_out = st.lists(tensors, max_size=4).map(tuple)
    moved = {VersionKind.FULL: st.none() | ranges, VersionKind.DELTA: st.none(), VersionKind.FRAGMENT: ranges}
    return VersionHead(
        number=number,
        parent=draw(st.none() | parents if kind is VersionKind.FULL else parents),
        kind=kind,
        layout_digest=draw(digests),
        codec=draw(codecs),
        payload_size=draw(ints),
        payload_digest=draw(digests),
        weights_digest=draw(digests),
        time_ms=draw(st.integers(0, 253_402_300_799_999)),
        manifest=draw(st.lists(contributions, max_size=4).map(tuple)),
        tensors=draw(laid_out if kind is VersionKind.FULL else st.none() | laid_out),
        tied=draw(st.none() | st.dictionaries(names, names, min_size=1, max_size=3)),
        rule=draw(st.dictionaries(st.text(max_size=10), json_like, max_size=4)),
        build=draw(st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=4)),
        range=draw(moved[kind]),
    )


versions = _versions()
any_head = updates | versions | snapshots | local_models
signatures = st.none() | st.binary(min_size=1, max_size=1024)
