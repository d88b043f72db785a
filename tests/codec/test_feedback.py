import pytest
import torch

from llmos_stream.codec import SLICE, ErrorFeedback, decode, encode
from llmos_stream.errors import StateError
from llmos_stream.types import CodecSpec
from tests.codec.samples import FLOAT32, SPECS, generator, int4, int8, name, normal, topk, topk2

NUMEL = 5000


def _encode(
    feedback: ErrorFeedback, delta: torch.Tensor, spec: CodecSpec, generator: torch.Generator | None = None
) -> list[bytes]:
    return list(feedback.frames(delta.clone(), spec, generator=generator))


def _residual(feedback: ErrorFeedback) -> torch.Tensor:
    return torch.zeros(NUMEL) if feedback.residual is None else feedback.residual.clone()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_sum_of_what_was_sent_is_the_sum_of_the_deltas_less_the_last_residual(spec: CodecSpec) -> None:
    feedback = ErrorFeedback(NUMEL)
    noise = generator()
    sent = torch.zeros(NUMEL, dtype=torch.float64)
    deltas = torch.zeros(NUMEL, dtype=torch.float64)
    for round_number in range(20):
        delta = normal(NUMEL, round_number)
        parts = _encode(feedback, delta, spec, generator=noise)
        feedback.commit()
        sent += decode(parts, spec, NUMEL)
        deltas += delta
    # Only twenty float32 additions of numbers up to some tens stand between the two.
    assert torch.allclose(sent + _residual(feedback), deltas, rtol=0, atol=5e-5)


@pytest.mark.parametrize("decay", [0.95, 0.5])
def test_what_was_left_out_long_ago_fades(decay: float) -> None:
    feedback = ErrorFeedback(NUMEL)
    owed = torch.zeros(NUMEL)
    for round_number in range(6):
        delta = normal(NUMEL, round_number)
        total = delta + decay * owed
        parts = list(feedback.frames(delta.clone(), topk2(64, 3), decay=decay))
        feedback.commit()
        sent = decode(parts, topk2(64, 3), NUMEL)
        owed = _residual(feedback)
        torch.testing.assert_close(sent + owed, total, rtol=0, atol=1e-5)
    nothing = torch.zeros(NUMEL)
    for _ in range(3):
        list(feedback.frames(nothing.clone(), FLOAT32, decay=decay))
        assert feedback.pending is not None
        feedback.rollback()  # what is not sent does not fade either
    assert torch.equal(_residual(feedback), owed)
    whole = decode(list(feedback.frames(nothing.clone(), FLOAT32, decay=decay)), FLOAT32, NUMEL)
    torch.testing.assert_close(whole, decay * owed)


def test_small_elements_are_sent_in_the_end() -> None:
    delta = torch.cat([torch.full((90,), 0.1), torch.full((10,), 1.0)])
    feedback = ErrorFeedback(100)
    once = decode(list(encode(delta, topk())), topk(), 100)
    assert not once[:90].any()
    total = torch.zeros(100)
    for _ in range(200):
        total += decode(_encode(feedback, delta, topk()), topk(), 100)
        feedback.commit()
    assert (total[:90] / (200 * 0.1) > 0.8).all()


def test_the_first_update_is_the_delta_alone() -> None:
    delta = normal(NUMEL)
    assert _encode(ErrorFeedback(NUMEL), delta, int8(), generator=generator()) == list(
        encode(delta, int8(), generator=generator())
    )


def test_the_new_residual_takes_the_place_of_the_delta() -> None:
    feedback = ErrorFeedback(NUMEL)
    for seed in range(2):
        delta = normal(NUMEL, seed)
        list(feedback.frames(delta, int4(), generator=generator()))
        feedback.commit()
        assert feedback.residual is not None
        assert feedback.residual.data_ptr() == delta.data_ptr()
        with pytest.raises(ValueError, match="encoded before"):
            feedback.frames(delta, int4(), generator=generator())


def test_the_residual_changes_at_commit_and_not_before() -> None:
    feedback = ErrorFeedback(NUMEL)
    flat = normal(NUMEL)
    parts = _encode(feedback, flat, int4(), generator=generator())
    assert _residual(feedback).tolist() == [0.0] * NUMEL
    feedback.commit()
    kept = _residual(feedback)
    assert torch.equal(kept, flat - decode(parts, int4(), NUMEL))
    _encode(feedback, normal(NUMEL, 1), int4(), generator=generator())
    assert torch.equal(_residual(feedback), kept)
    feedback.commit()
    assert not torch.equal(_residual(feedback), kept)


def test_rollback_keeps_the_old_residual() -> None:
    feedback = ErrorFeedback(NUMEL)
    _encode(feedback, normal(NUMEL), int4(), generator=generator())
    feedback.commit()
    parts = _encode(feedback, normal(NUMEL, 1), int4(), generator=generator(1))
    feedback.rollback()
    assert _encode(feedback, normal(NUMEL, 1), int4(), generator=generator(1)) == parts


def test_an_update_is_settled_before_the_next() -> None:
    feedback = ErrorFeedback(NUMEL)
    with pytest.raises(ValueError, match="no encoded update"):
        feedback.commit()
    feedback.rollback()
    _encode(feedback, normal(NUMEL), FLOAT32)
    with pytest.raises(ValueError, match="commit or roll back"):
        _encode(feedback, normal(NUMEL), FLOAT32)
    feedback.commit()
    with pytest.raises(ValueError, match="no encoded update"):
        feedback.commit()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_delta_that_is_not_finite_changes_nothing(spec: CodecSpec, bad: float) -> None:
    feedback = ErrorFeedback(NUMEL)
    _encode(feedback, normal(NUMEL), int4(), generator=generator())
    feedback.commit()
    before = feedback.residual
    delta = normal(NUMEL)
    delta[17] = bad
    with pytest.raises(ValueError, match=r"NaN (or|and) infinity"):
        _encode(feedback, delta, spec, generator=generator())
    assert feedback.residual is before
    _encode(feedback, normal(NUMEL), spec, generator=generator())


def test_a_delta_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="flat vector"):
        _encode(ErrorFeedback(NUMEL), normal(NUMEL + 1), FLOAT32)


def test_a_stored_residual_goes_on_where_it_was() -> None:
    first = ErrorFeedback(NUMEL)
    _encode(first, normal(NUMEL), int4(), generator=generator())
    first.commit()
    assert first.residual is not None
    second = ErrorFeedback(NUMEL)
    second.residual = first.residual.clone()
    delta = normal(NUMEL, 1)
    parts = [_encode(feedback, delta, int4(), generator=generator(1)) for feedback in (first, second)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize(
    "stored",
    [
        torch.zeros(NUMEL + 1),
        torch.zeros(0),
        torch.zeros(NUMEL, dtype=torch.float64),
        torch.zeros(NUMEL, 1),
        torch.full((NUMEL,), float("nan")),
        torch.full((NUMEL,), -float("inf")),
    ],
)
def test_a_residual_of_another_model_is_a_state_error(stored: torch.Tensor) -> None:
    feedback = ErrorFeedback(NUMEL)
    with pytest.raises(StateError, match="residual"):
        feedback.residual = stored
    assert feedback.residual is None


def test_a_residual_that_is_put_back_is_not_written_over() -> None:
    feedback = ErrorFeedback(NUMEL)
    _encode(feedback, normal(NUMEL), int4(), generator=generator())
    feedback.commit()
    first = feedback.residual
    assert first is not None
    kept = first.clone()
    _encode(feedback, normal(NUMEL, 1), int4(), generator=generator())
    feedback.commit()
    feedback.residual = first
    _encode(feedback, normal(NUMEL, 2), int4(), generator=generator())
    assert torch.equal(first, kept)


def test_setting_a_residual_drops_what_was_pending() -> None:
    feedback = ErrorFeedback(NUMEL)
    _encode(feedback, normal(NUMEL), int4(), generator=generator())
    feedback.residual = None
    with pytest.raises(ValueError, match="no encoded update"):
        feedback.commit()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_frames_are_those_of_the_sum_and_the_residual_is_there_with_the_last(spec: CodecSpec) -> None:
    count = SLICE + 1000
    feedback = ErrorFeedback(count)
    owed = torch.zeros(count)
    for seed in range(4):
        delta = normal(count, seed)
        residual = delta + owed
        expected = list(encode(residual, spec, generator=generator(seed), residual=residual))
        frames = feedback.frames(delta, spec, generator=generator(seed))
        parts = [next(frames)]
        with pytest.raises(ValueError, match="no encoded update"):
            feedback.commit()
        parts += frames
        assert parts == expected
        assert feedback.pending is not None
        assert torch.equal(feedback.pending, residual)
        assert torch.equal(owed, torch.zeros(count) if feedback.residual is None else feedback.residual)
        feedback.commit()
        owed = residual


def test_frames_that_are_not_all_drawn_change_nothing() -> None:
    count = SLICE + 10
    feedback, other = ErrorFeedback(count), ErrorFeedback(count)
    for seed in range(3):
        delta = normal(count, seed)
        abandoned = feedback.frames(delta.clone(), int4(), generator=generator())
        next(abandoned)
        bad = delta.clone()
        bad[-1] = float("nan")
        with pytest.raises(ValueError, match=r"NaN (or|and) infinity"):
            list(feedback.frames(bad, int4(), generator=generator()))
        assert _encode(feedback, delta, int4(), generator=generator()) == _encode(
            other, delta, int4(), generator=generator()
        )
        feedback.commit()
        other.commit()


def test_an_empty_model_has_an_empty_residual() -> None:
    feedback = ErrorFeedback(0)
    assert _encode(feedback, torch.zeros(0), int8(), generator=generator()) == []
    feedback.commit()
    assert feedback.residual is not None
    assert feedback.residual.numel() == 0
