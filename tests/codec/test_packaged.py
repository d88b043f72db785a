"""A package's codec, installed at both ends: encoded, decoded, folded and refused as those that are built in."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmos_stream.broker import MemoryBroker
from llmos_stream.codec import ErrorFeedback, decode, encode, max_payload_size, spec_of
from llmos_stream.codec.packaged import packaged_codecs
from llmos_stream.codec.table import codec_for
from llmos_stream.config import CodecSettings
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.types import CodecId, CodecSpec
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.strategy.packages import installed

SOURCE = '''
import torch
from pydantic import BaseModel, Field

class Options(BaseModel):
    step: float = Field(default=0.01, gt=0)

class Ternary:
    """-1, 0 or 1 times a step."""
    id = 200
    Options = Options

    def __init__(self, options):
        self.step = options.step

    def encode(self, values, generator):
        return [(values / self.step).round().clamp(-1, 1).to(torch.int8).view(torch.uint8)]

    def decode(self, body, out):
        if int(body.max()) == 77:
            raise IndexError("77 is none of three")
        out.copy_(body.view(torch.int8)).mul_(self.step)

    def bounds(self, count):
        return count, count

class Taken(Ternary):
    id = 4
'''
ENTRIES = """
[llmos_stream.codecs]
ternary = ternary_codec:Ternary
taken = ternary_codec:Taken
broken = ternary_codec:Nothing
"""
SPEC = CodecSpec(200, {"step": 0.01})


@pytest.fixture
def package(tmp_path: Path) -> Iterator[None]:
    packaged_codecs.cache_clear()
    with installed(tmp_path, "ternary_codec", SOURCE, ENTRIES):
        yield
    packaged_codecs.cache_clear()


@pytest.mark.usefixtures("package")
def test_it_is_encoded_and_decoded_as_the_others() -> None:
    flat = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 0.01
    spec = spec_of(CodecSettings(name="ternary", options={"step": 0.01}))
    assert spec == SPEC
    parts = list(encode(flat, spec))
    assert torch.allclose(decode(parts, spec, 3000), (flat / 0.01).round().clamp(-1, 1) * 0.01)
    assert sum(map(len, parts)) <= max_payload_size(spec, 3000)
    assert spec_of(CodecSettings(name="int8")).id is CodecId.INT8


@pytest.mark.usefixtures("package")
def test_error_feedback_makes_up_for_it() -> None:
    feedback, total = ErrorFeedback(1000), torch.zeros(1000)
    delta = torch.full((1000,), 0.004)
    for _ in range(10):
        total += decode(feedback.frames(delta.clone(), SPEC), SPEC, 1000)
        feedback.commit()
    assert torch.allclose(total, delta * 10, atol=0.0051)


@pytest.mark.usefixtures("package")
def test_what_is_wrong_with_a_payload_refuses_it() -> None:
    bad = list(encode(torch.zeros(100), CodecSpec(CodecId.INT8, {"block": 32, "stochastic": 0})))
    with pytest.raises(Rejected):
        decode(bad, SPEC, 100)
    with pytest.raises(ValueError, match="NaN"):
        list(encode(torch.full((4,), float("nan")), SPEC))
    with pytest.raises(Rejected) as caught:
        codec_for(SPEC).decode(torch.full((4,), 77, dtype=torch.uint8), torch.empty(4), None)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.CORRUPT_PAYLOAD
    with pytest.raises(Rejected) as caught:
        codec_for(CodecSpec(200, {"step": -1}))
    assert caught.value.reason is Reason.BAD_CODEC_PARAMS


@pytest.mark.usefixtures("package")
def test_one_that_takes_an_id_of_others_or_cannot_be_imported_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert list(packaged_codecs()) == [200]
    assert "codec taken cannot be used: its id is 4" in caplog.text
    assert "codec broken cannot be used" in caplog.text
    with pytest.raises(ConfigError, match=r"codec\.name: taken is .*no codec with an id from 128 to 255"):
        spec_of(CodecSettings(name="taken"))
    with pytest.raises(ConfigError, match=r"codec\.options: step: Input should be greater than 0"):
        spec_of(CodecSettings(name="ternary", options={"step": 0}))


def test_where_it_is_not_installed_its_updates_are_refused_and_its_name_is_unknown() -> None:
    packaged_codecs.cache_clear()
    assert "ternary_codec" not in sys.modules
    with pytest.raises(Rejected) as caught:
        codec_for(SPEC)
    assert caught.value.reason is Reason.UNKNOWN_CODEC
    with pytest.raises(ValueError, match="no codec 'ternary' is installed"):
        CodecSettings(name="ternary")
    with pytest.raises(ConfigError, match=r"codec\.options: int8 takes none"):
        spec_of(CodecSettings(options={"a": 1}))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("strategy", ["fedbuff", "median"])
async def test_updates_in_it_are_folded_and_replayed(federation: str, strategy: str) -> None:
    aggregation = {"strategy": strategy, "buffer_size": 2, "one_of_a_client": False}
    broker, settings = MemoryBroker(), settings_for(federation, aggregation=aggregation)
    async with aggregator(broker, settings) as running:
        for number, value in enumerate((0.01, -0.01, 0.01, 0.01)):
            await running.send(update(delta_of(value), sequence=number, base_version=number // 2, written=SPEC))
            if number == 1:
                await running.version(1)
        version = await running.version(2)
    assert torch.allclose(version.weights, delta_of(0.01))
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL, RebuildOutcome.MATCH, RebuildOutcome.MATCH]
