"""Which token comes next."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0: always the likeliest token.
        top_p: Only the likeliest tokens are drawn from that together have this probability.
        seed: Of the draws. None: another one each time.
        logprobs: How many of the likeliest tokens are told with each. None: not even the token's own probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


class Chosen(NamedTuple):
    """A token. Logarithms of probabilities are the model's own, before temperature and top_p."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer. The same seed and the same logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator("cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> Chosen:
        """Choose by logits [V], float32.

        Raises:
            ValueError: They are not finite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("logits that are not finite")
        token = self._token(logits)
        most = self._sampling.logprobs
        if most is None:
            return Chosen(token)
        logs = logits.log_softmax(0)
        values, places = logs.topk(min(most, len(logs)))
        likeliest = tuple(zip(places.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logs[token]), likeliest)

    def _token(self, logits: Tensor) -> int:
        how = self._sampling
        if how.temperature == 0 or how.top_p == 0:
            return int(logits.argmax())
        chances = ((logits - logits.max()) / how.temperature).softmax(0)
        if how.top_p < 1:
            ordered, places = chances.sort(descending=True, stable=True)
            before = ordered.cumsum(0) - ordered
            chances = torch.zeros_like(chances).scatter(0, places, ordered.where(before < how.top_p, 0.0))
            chances[places[0]] = ordered[0]  # whatever rounding makes of the sum
        return int(torch.multinomial(chances, 1, generator=self._generator))
