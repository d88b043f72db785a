"""Sequences that are continued together, each by a token at a time, with what attention keeps of them in memory.

Keys and values are [N, heads, T, size], one pair for each layer, with each sequence at the right end:

    . . a b c      mask 0 0 1 1 1
    d e f g h           1 1 1 1 1

Sequences join between two steps, after a pass over their prompts alone, and leave between two steps. T is the length of
the longest that is there.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache


class Decoder:
    """Continues the sequences of one version, whose weights `model` (that of transformers) must have at each call."""

    def __init__(self, model: Any) -> None:
        takes = inspect.signature(model.forward).parameters
        self._model = model
        self._last_alone = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._takes_places = "position_ids" in takes
        self._name = "cache" if "cache" in takes else "past_key_values"  # as releases of transformers call it
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    def __len__(self) -> int:
        return len(self._mask)

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Take in sequences, as the last ones; return the logits [N, V], float32, of their next tokens."""
        with torch.inference_mode():
            longest = max(map(len, prompts))
            tokens = self._whole([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
            mask = self._whole([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            arguments: dict[str, Any] = dict(self._last_alone)
            if len(prompts) > 1:
                arguments["attention_mask"] = mask
                if self._takes_places:
                    arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
            cache: Any = DynamicCache()
            found = self._pass(tokens, cache, **arguments)
            if len(self):
                length = max(mask.shape[1], self._mask.shape[1])
                for ours, new in zip(self._cache.layers, cache.layers, strict=True):
                    new.keys = torch.cat([_wider(ours.keys, length), _wider(new.keys, length)])
                    new.values = torch.cat([_wider(ours.values, length), _wider(new.values, length)])
                mask = torch.cat([pad(one, (length - one.shape[1], 0)) for one in (self._mask, mask)])
            self._cache, self._mask = cache, mask
            logits: Tensor = found.logits[:, -1].float()
            return logits

    def _whole(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self._model.device)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Continue each sequence by its token; return the logits [N, V], float32, of the next ones."""
        with torch.inference_mode():
            last = torch.tensor(list(tokens), dtype=torch.long, device=self._model.device)[:, None]
            places = {"position_ids": self._mask.sum(dim=1, keepdim=True)} if self._takes_places else {}
            mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
            found = self._pass(last, self._cache, attention_mask=mask, **places)
            self._mask = mask
            logits: Tensor = found.logits[:, -1].float()
            return logits

    def _pass(self, tokens: Tensor, cache: Any, **arguments: Any) -> Any:
        """Run the model over tokens [N, T]; their keys and values go to the end of `cache`."""
        return self._model(input_ids=tokens, use_cache=True, **{self._name: cache}, **arguments)

    def keep(self, some: Sequence[int]) -> None:
        """Let go all sequences but these, which stay in this order."""
        if len(some) == len(self):
            return
        with torch.inference_mode():
            chosen = torch.tensor(list(some), dtype=torch.long, device=self._model.device)
            mask = self._mask[chosen]
            if not some:
                self._cache, self._mask = None, mask[:, :0]
                return
            begin = int(mask.any(dim=0).int().argmax())
            self._mask = mask[:, begin:]
            for layer in self._cache.layers:
                layer.keys = layer.keys[:, :, begin:][chosen]
                layer.values = layer.values[:, :, begin:][chosen]


def _wider(kept: Tensor, length: int) -> Tensor:
    """Keys or values with room at the left, so that they have `length` places."""
    return pad(kept, (0, 0, length - kept.shape[2], 0))
