"""Tokens are drawn as their probabilities say."""

import pytest
import torch

from llmos_stream.inference.generation.sampling import Sampler, Sampling

_LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def _drawn(sampling: Sampling, count: int = 4000) -> list[float]:
    sampler = Sampler(sampling)
    found = torch.tensor([sampler.choose(_LOGITS).token for _ in range(count)])
    return (torch.bincount(found, minlength=4) / count).tolist()


@pytest.mark.parametrize(
    ("sampling", "chances"),
    [
        (Sampling(seed=1), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_p=0.79, seed=2), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(top_p=0.81, seed=3), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
        (Sampling(temperature=0.5, seed=4), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(temperature=0.0), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=1e-6), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(top_p=0.0), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_draws(sampling: Sampling, chances: list[float]) -> None:
    assert _drawn(sampling) == pytest.approx(chances, abs=0.03)


def test_the_logarithms_are_the_models_own() -> None:
    chosen = Sampler(Sampling(temperature=0.1, seed=1, logprobs=2)).choose(_LOGITS + 7)
    assert [token for token, _ in chosen.likeliest] == [0, 1]
    assert [log for _, log in chosen.likeliest] == pytest.approx(_LOGITS[:2].tolist(), abs=1e-5)


def test_numbers_that_are_not_finite_choose_nothing() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Sampler(Sampling()).choose(torch.tensor([0.0, float("inf")]))
