"""A causal language model as the trainer takes it: packed sequences in, logits of the tokens to be predicted out."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class LanguageModel(nn.Module):
    """Sees through packing: each token attends to what comes before it in its own example, and to nothing else.

    It has the names of the model inside (see `training.wrappers`).
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self._keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters

    def forward(self, tokens: Tensor, segments: Tensor, predict: Tensor) -> Tensor:
        """The logits [M, vocabulary], float32, of the M tokens that follow the marked ones, row by row.

        Args:
            tokens: [N, T].
            segments: [N, T], which example of its row a token is of.
            predict: [N, T], whether the token after this one is to be predicted.
        """
        kept = predict.any(dim=0).nonzero().flatten()
        some = {"logits_to_keep": kept} if self._keeps else {}
        found: Tensor = self.inner(input_ids=tokens, use_cache=False, **_packed(segments, self._bias), **some).logits
        marked = predict[:, kept] if self._keeps else predict
        return found[marked].float()

    @property
    def _bias(self) -> torch.dtype | None:
        """The dtype of a mask that is added to the scores; None: it says which of them count."""
        if self.inner.config._attn_implementation == "sdpa":  # the library has no other name for it
            return None
        dtype: torch.dtype = next(self.inner.parameters()).dtype
        return dtype


def _packed(segments: Tensor, bias: torch.dtype | None) -> dict[str, Tensor]:
    """Mask and positions of packed examples; nothing where each row is one example."""
    if not bool((segments != segments[:, :1]).any()):
        return {}
    length = segments.shape[1]
    places = torch.arange(length, device=segments.device)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(begins, places, 0).cummax(dim=1).values
    seen = (segments[:, :, None] == segments[:, None, :]) & (places[:, None] >= places[None, :])
    mask = seen[:, None]
    if bias is not None:
        mask = torch.where(mask, 0.0, torch.finfo(bias).min).to(bias)
    return {"attention_mask": mask, "position_ids": places - first}
