"""`speeches`: which character comes next? Eight presidents of the USA, from Jackson to Obama.

A site holds what one of them said to the Congress (State of the Union): 130 to 150 thousand characters. The first and
the last are 180 years apart, so they differ in words and in what they speak of.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from llmos_stream.scenarios.site_task import Examples, SiteTask, Split
from llmos_stream.scenarios.speeches_model import CharacterModel, characters
from llmos_stream.scenarios.tables import read_lines
from llmos_stream.training.metrics import Metric, Perplexity
from llmos_stream.training.seeds import derive_seed

SITES = (
    "Andrew Jackson",
    "Ulysses S Grant",
    "Grover Cleveland",
    "Theodore Roosevelt",
    "Harry S Truman",
    "Jimmy Carter",
    "William J Clinton",
    "Barack Obama",
)
_LENGTH = 64
_WIDTH, _HEADS, _BLOCKS = 48, 4, 2
_WINDOWS_A_PIECE = 16
_VALIDATION, _TEST = 0.03, 0.06
_BETAS = (0.9, 0.95)
"""AdamW begins anew with each update: its memory need not be longer than one."""


class Speeches(SiteTask):
    """A transformer of 64 thousand parameters, trained from nothing on windows of 64 characters."""

    name = "speeches"
    sites = SITES

    def model(self) -> nn.Module:
        return CharacterModel(_LENGTH, _WIDTH, _HEADS, _BLOCKS)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW((one for one in model.parameters() if one.requires_grad), lr=self.client.lr, betas=_BETAS)

    def split(self, site: str) -> Split:
        return _split(site, self.settings.seed)

    def metrics(self) -> Mapping[str, Metric]:
        return {"perplexity": Perplexity()}

    def example(self) -> Tensor:
        return torch.zeros(_LENGTH, dtype=torch.int64, device="cpu")


@cache
def _split(site: str, seed: int) -> Split:
    """Whole pieces of the text, of 16 windows each, are held back: by chance, and no character is in two windows."""
    text = " ".join(row["text"] for row in read_lines("speeches") if row["speaker"] == site)
    size = _WINDOWS_A_PIECE * (_LENGTH + 1)
    pieces = characters(text)[: len(text) // size * size].view(-1, size)
    order = np.random.default_rng(derive_seed(seed, f"split of {site}")).permutation(len(pieces))
    for_test, held = round(_TEST * len(pieces)), round((_TEST + _VALIDATION) * len(pieces))
    parts = (order[held:], order[for_test:held], order[:for_test])
    return Split(*(_windows(pieces[np.sort(part)]) for part in parts))


def _windows(pieces: Tensor) -> Examples:
    """Windows (N, 64) that lie one behind the other, and of each place the character after it."""
    windows = pieces.reshape(-1, _LENGTH + 1)
    return Examples(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
