"""A small language model of characters: a transformer (Vaswani et al. 2017) that looks at what came before alone.

Layers are normalised before each block, the output is tied to the embedding. The characters are a constant that all
sites agree on, since none may look at another's text.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_FIRST, _LAST = " ", "~"
VOCABULARY = ord(_LAST) - ord(_FIRST) + 2
"""The printable characters of ASCII, and one for every other."""
_OTHER = 0
_SPREAD = 0.02


def characters(text: str) -> Tensor:
    """The text's characters as numbers (N), int64: 0 for one that is not printable ASCII."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
    known = (ord(_FIRST) <= codes) & (codes <= ord(_LAST))
    return torch.from_numpy(np.where(known, codes - ord(_FIRST) + 1, _OTHER))


class CharacterModel(nn.Module):
    """Of each place in a text, logits of the character that comes next: (N, T) int64 in, (N, VOCABULARY, T) out.

    `bias` says how often a character is used at all.
    """

    def __init__(self, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, dtype=torch.float32, device="cpu")
        self.places = nn.Embedding(length, width, dtype=torch.float32, device="cpu")
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width, dtype=torch.float32, device="cpu")
        self.bias = nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float32, device="cpu"))
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=_SPREAD)

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.tokens(characters) + self.places.weight[: characters.shape[1]]
        logits: Tensor = self.norm(self.blocks(hidden)) @ self.tokens.weight.T + self.bias
        return logits.transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention_norm = nn.LayerNorm(width, dtype=torch.float32, device="cpu")
        self.qkv = nn.Linear(width, 3 * width, dtype=torch.float32, device="cpu")
        self.mix = nn.Linear(width, width, dtype=torch.float32, device="cpu")
        self.feed_forward_norm = nn.LayerNorm(width, dtype=torch.float32, device="cpu")
        self.up = nn.Linear(width, 4 * width, dtype=torch.float32, device="cpu")
        self.down = nn.Linear(4 * width, width, dtype=torch.float32, device="cpu")

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self._attention(self.attention_norm(hidden))
        mixed: Tensor = hidden + self.down(gelu(self.up(self.feed_forward_norm(hidden))))
        return mixed

    def _attention(self, hidden: Tensor) -> Tensor:
        many, length, width = hidden.shape
        split = self.qkv(hidden).view(many, length, 3, self._heads, width // self._heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        mixed: Tensor = self.mix(found.transpose(1, 2).reshape(many, length, width))
        return mixed
