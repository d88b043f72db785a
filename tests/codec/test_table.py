import math
from typing import Any, Literal

import pytest

from llmos_stream.codec import spec_of
from llmos_stream.codec.table import TABLE, codec_for
from llmos_stream.config import CodecSettings
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecId, CodecSpec
from tests.codec.samples import SPECS, name, topk


def test_table_is_complete_and_ids_never_change() -> None:
    ids = {"FLOAT32": 1, "FLOAT16": 2, "BFLOAT16": 3, "INT8": 4, "INT4": 5, "TOPK": 6, "TOPK2": 7}
    assert {id.name: int(id) for id in CodecId} == ids
    assert set(TABLE) == set(CodecId)


def test_samples_cover_the_table() -> None:
    assert {spec.id for spec in SPECS} == set(CodecId)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_plain_integers_name_codecs_too(spec: CodecSpec) -> None:
    assert codec_for(CodecSpec(int(spec.id), dict(spec.params))) == codec_for(spec)


@pytest.mark.parametrize("id", [0, 8, -1, 2**70, 1.0, True, "1", "float32", None, [], b"\x01"])
def test_unknown_ids(id: object) -> None:
    with pytest.raises(Rejected) as caught:
        codec_for(CodecSpec(id))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.UNKNOWN_CODEC


GOOD_INT: dict[object, object] = {"block": 256, "stochastic": 1}
GOOD_TOPK: dict[object, object] = {"fraction": 0.1, "bits": 8, "stochastic": 1}
GOOD_TOPK2: dict[object, object] = {"chunk": 4096, "keep": 64}


@pytest.mark.parametrize(
    ("id", "params"),
    [
        *((id, {"block": 256}) for id in (1, 2, 3)),
        *((id, {}) for id in (4, 5, 6, 7)),
        *((id, None) for id in range(1, 8)),
        *((id, [("block", 256)]) for id in (1, 4)),
        *((4, GOOD_INT | {"block": bad}) for bad in (0, 1, 16, 48, 255, 2048, -256, 256.0, "256", True, None, [256])),
        *((5, GOOD_INT | {"stochastic": bad}) for bad in (2, -1, 1.0, True, "1", None)),
        (4, {"block": 256}),
        (4, {"stochastic": 1}),
        (4, GOOD_INT | {"fraction": 0.1}),
        (4, {"block": 256, 7: 1}),
        *(
            (6, GOOD_TOPK | {"fraction": bad})
            for bad in (0, 0.0, -0.1, 1.001, 2, math.nan, math.inf, True, "0.1", None)
        ),
        *((6, GOOD_TOPK | {"bits": bad}) for bad in (0, 4, 16, 8.0, "8", True)),
        (6, GOOD_TOPK | {"bits": 32}),
        (6, GOOD_TOPK | {"block": 4096}),
        (6, {"fraction": 0.1, "bits": 8}),
        *((7, GOOD_TOPK2 | {"chunk": bad}) for bad in (0, 1, 32, 100, 2**17, -4096, 4096.0, "4096", True, None)),
        *((7, GOOD_TOPK2 | {"keep": bad}) for bad in (0, -1, 4097, 2**70, 64.0, "64", True, None)),
        (7, GOOD_TOPK2 | {"stochastic": 0}),
        (7, {"chunk": 4096}),
        (7, {"keep": 64}),
    ],
)
def test_bad_params(id: int, params: object) -> None:
    with pytest.raises(Rejected) as caught:
        codec_for(CodecSpec(id, params))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.BAD_CODEC_PARAMS


def test_a_rejection_does_not_repeat_a_flood() -> None:
    with pytest.raises(Rejected) as caught:
        codec_for(CodecSpec(4, {"x" * 100_000: 1}))
    assert len(str(caught.value)) < 300


def test_a_whole_number_is_a_fraction() -> None:
    assert codec_for(topk(1, 8, 1)) == codec_for(topk(1.0, 8, 1))


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16", "int8", "int4", "topk", "topk2"])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_every_setting_makes_a_valid_spec(codec: str, rounding: str) -> None:
    settings = CodecSettings.model_validate(
        {"name": codec, "rounding": rounding, "block": 64, "fraction": 0.25, "chunk": 256, "keep": 4}
    )
    spec = spec_of(settings)
    codec_for(spec)
    assert spec.label == codec
    stochastic = int(rounding == "stochastic")
    expected: dict[str, dict[str, float]] = {
        "int8": {"block": 64, "stochastic": stochastic},
        "int4": {"block": 64, "stochastic": stochastic},
        "topk": {"fraction": 0.25, "bits": 8, "stochastic": stochastic},
        "topk2": {"chunk": 256, "keep": 4},
    }
    assert spec.params == expected.get(codec, {})


@pytest.mark.parametrize("name", ["int8", "int4", "topk"])
def test_rounding_is_to_nearest_where_error_feedback_makes_up_for_it(name: Literal["int8", "int4", "topk"]) -> None:
    def stochastic(**fields: Any) -> int | float:
        return spec_of(CodecSettings(name=name, **fields)).params["stochastic"]

    assert stochastic() == 0
    assert stochastic(error_feedback=False) == 1
    assert stochastic(rounding="stochastic") == 1
    assert stochastic(rounding="nearest", error_feedback=False) == 0


def test_a_chunk_keeps_no_more_than_it_has() -> None:
    assert CodecSettings(chunk=64, keep=64).keep == 64
    with pytest.raises(ValueError, match=r"keep: 65 is more than a chunk has \(64\)"):
        CodecSettings(chunk=64, keep=65)
    with pytest.raises(ValueError, match="power of two"):
        CodecSettings(chunk=100)
