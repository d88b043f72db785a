"""Delta versions: readers compute what the writer says, what is left out is not residual, and damage is found."""

import pytest
import torch
from torch import Tensor

from llmos_stream.codec import SLICE, Residual, add_residual, apply_delta, decode, encode, encode_delta, fits_delta
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import CodecId, CodecSpec

SPECS = [
    CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 0}),
    CodecSpec(CodecId.INT8, {"block": 64, "stochastic": 0}),
]
SPARSE = CodecSpec(CodecId.TOPK2, {"chunk": 256, "keep": 16})
NUMELS = [1, 7, 5000, SLICE + 3]


def _noise(numel: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * scale


def _owed(residual: Residual, numel: int) -> Tensor:
    return decode(residual.parts, residual.codec, numel)


@pytest.mark.parametrize("spec", [*SPECS, SPARSE])
@pytest.mark.parametrize("numel", NUMELS)
def test_a_reader_gets_the_very_bytes_through_a_whole_chain(spec: CodecSpec, numel: int) -> None:
    reader = _noise(numel, 0)
    published, residual = reader.clone(), None
    for number in range(1, 6):
        target = published + _noise(numel, number, 0.01)
        parts, residual = encode_delta(published, target, residual, spec)
        apply_delta(reader, parts, spec)
        published = target
        assert torch.equal(reader, published)


@pytest.mark.parametrize("spec", SPECS)
def test_what_readers_have_and_are_owed_is_what_was_meant(spec: CodecSpec) -> None:
    numel = 5000
    meant = _noise(numel, 0)
    published, residual = meant.clone(), None
    for number in range(1, 30):
        delta = _noise(numel, number, 0.01)
        meant += delta
        target = published + delta
        _, residual = encode_delta(published, target, residual, spec)
        published = target
    assert residual is not None
    steps = 7 if spec.id == CodecId.INT4 else 127
    # Without feedback the error of 29 deltas adds up; with it, only what the residual's own rounding lets go does.
    one_step = 0.01 * 4 / steps
    assert (published - meant).abs().max() < 2.0 * one_step
    assert (published + _owed(residual, numel) - meant).abs().max() < 0.6 * one_step
    add_residual(published, residual)
    assert (published - meant).abs().max() < 0.6 * one_step


def test_a_sparse_delta_moves_few_elements_and_owes_the_rest() -> None:
    """What it leaves out is 29 deltas' worth, and is still known but for the rounding of the residual."""
    numel, updates = 4096, CodecSpec(CodecId.TOPK2, {"chunk": 256, "keep": 4})
    meant = _noise(numel, 0)
    published, residual, length = meant.clone(), None, 0.01 * numel**0.5
    for number in range(1, 30):
        delta = _noise(numel, number, 0.01)
        meant += delta
        before, target = published, published + delta
        parts, residual = encode_delta(before, target, residual, SPARSE)
        published = target
        assert int((published != before).sum()) <= numel // 16
        assert 8 * sum(map(len, parts)) < 0.75 * numel
    assert residual is not None
    assert (published - meant).norm() > length
    assert (published + _owed(residual, numel) - meant).norm() < 0.05 * (published - meant).norm()
    # Four updates of 4 in 256 move no more than 16 in 256: all but the rounding of the values arrives at once.
    sent = sum((decode(list(encode(_noise(numel, one), updates)), updates, numel) for one in range(4)), torch.zeros(1))
    target = published + sent
    encode_delta(published, target, None, SPARSE)
    assert (target - published - sent).norm() < 0.2 * sent.norm()
    assert not ((target != published) & (sent == 0)).any()


def test_without_a_residual_settling_changes_nothing() -> None:
    weights = _noise(100, 1)
    before = weights.clone()
    add_residual(weights, None)
    assert torch.equal(weights, before)


def test_the_residual_may_be_of_another_codec_than_the_delta() -> None:
    parent = _noise(3000, 0)
    _, residual = encode_delta(parent, parent + _noise(3000, 1, 0.1), None, SPECS[1])
    target = parent.clone()
    encode_delta(parent, target, residual, SPECS[0])
    assert not torch.equal(target, parent)
    assert (target - parent - _owed(residual, 3000)).abs().max() < 1e-3


def test_the_same_input_gives_the_same_bytes_for_any_number_of_threads() -> None:
    parent, target = _noise(SLICE + 500, 0), _noise(SLICE + 500, 1)
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            weights = target.clone()
            made.append((encode_delta(parent, weights, None, SPECS[0]), weights))
    finally:
        torch.set_num_threads(threads)
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["parent", "weights"])
def test_weights_that_no_delta_can_say_are_turned_down_before_anything_changes(bad: float, where: str) -> None:
    vectors = {"parent": _noise(300, 0), "weights": _noise(300, 1)}
    vectors[where][7] = bad
    before = vectors["weights"].clone()
    assert not fits_delta(**vectors)
    with pytest.raises(ValueError, match="differ by more"):
        encode_delta(vectors["parent"], vectors["weights"], None, SPECS[0])
    assert torch.equal(vectors["weights"].view(torch.int32), before.view(torch.int32))


def test_nothing_is_no_delta() -> None:
    assert not fits_delta(torch.empty(0), torch.empty(0))


def test_sparse_changes_cost_next_to_nothing() -> None:
    """What a few top-k updates change is written as mostly zeros, which zstd folds away."""
    parent = _noise(200_000, 0)
    target = parent.clone()
    target[::500] += 1.0
    parts, _ = encode_delta(parent, target, None, SPECS[0])
    assert sum(map(len, parts)) < 0.02 * 4 * parent.numel()


def test_damage_is_said() -> None:
    parent = _noise(5000, 0)
    parts, residual = encode_delta(parent, parent + _noise(5000, 1), None, SPECS[0])
    with pytest.raises(Rejected) as cut:
        apply_delta(parent.clone(), [parts[0][:-5]], SPECS[0])
    assert cut.value.reason is Reason.TRUNCATED
    with pytest.raises(Rejected) as longer:
        apply_delta(parent.clone(), [*parts, b"x"], SPECS[0])
    assert longer.value.reason is Reason.CORRUPT_PAYLOAD
    with pytest.raises(Rejected):
        encode_delta(parent, parent.clone(), Residual(residual.codec, [b"".join(residual.parts)[:-5]]), SPECS[0])


def test_a_codec_that_needs_randomness_is_a_mistake() -> None:
    parent = _noise(300, 0)
    with pytest.raises(ValueError, match="Generator"):
        encode_delta(parent, parent + 1, None, CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 1}))


def test_a_delta_takes_a_quarter_of_a_full_version_at_most() -> None:
    parent = _noise(100_000, 0)
    full = sum(map(len, encode(parent, CodecSpec(CodecId.FLOAT32))))
    parts, residual = encode_delta(parent, parent + _noise(100_000, 1, 0.01), None, SPECS[0])
    assert 4 * sum(map(len, parts)) < full
    assert 4 * sum(map(len, residual.parts)) < full
