"""Examples as sequences of one length: long texts are cut into several, short examples share one.

An example that is no text must fit into a sequence. What is behind the end of one is left out, and counted.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_stream.training.batches import Batch, Parts
from llmos_stream.training.llm.texts import Example
from llmos_stream.training.seeds import derive_seed

_FILLER = -1
"""The segment of what fills a sequence up."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What did not fit: of how many examples, how many tokens, and examples of which nothing to learn is left."""

    examples: int = 0
    tokens: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """N sequences of T tokens. All are [N, T]: `tokens` and `segments` int32, `predict` says where the next is learnt.

    `num_tokens` are those to be learnt.
    """

    tokens: Tensor
    segments: Tensor
    predict: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        return int(self.predict.sum())

    def __getitem__(self, rows: Tensor) -> "Sequences":
        return Sequences(self.tokens[rows], self.segments[rows], self.predict[rows])

    def split(self, holdout: float, seed: int) -> tuple["Sequences", "Sequences"]:
        """(those to train on, those held back), drawn by `seed`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(self), generator=generator, device="cpu")
        held = round(holdout * len(self))
        return self[order[held:].sort().values], self[order[:held].sort().values]

    def batch(self) -> Batch:
        """(inputs of `LanguageModel`, the tokens to be predicted [M])."""
        tokens = self.tokens.long()
        targets = tokens[:, 1:][self.predict[:, :-1]]
        return {"tokens": tokens, "segments": self.segments, "predict": self.predict}, targets


class SequenceBatches:
    """Batches of sequences, in stored order or, given a seed, in a new order each time it is iterated."""

    def __init__(
        self, sequences: Sequences, batch_size: int, micro_batch: int | None = None, shuffle_seed: int | None = None
    ) -> None:
        self._sequences = sequences
        self._batch_size = batch_size
        self._micro_batch = micro_batch or batch_size
        self._shuffle_seed = shuffle_seed
        self._epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self._sequences) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self._sequences), device="cpu")
        if self._shuffle_seed is not None:
            seed = derive_seed(self._shuffle_seed, "epoch", self._epoch)
            generator = torch.Generator("cpu").manual_seed(seed)
            order = torch.randperm(len(order), generator=generator, device="cpu")
            self._epoch += 1
        for rows in torch.split(order, self._batch_size):
            parts = [self._sequences[some].batch() for some in torch.split(rows, self._micro_batch)]
            yield parts[0] if len(parts) == 1 else Parts(parts)


def sequences_of(examples: Iterable[Example], length: int, filler: int, *, packing: bool) -> tuple[Sequences, Cut]:
    """All examples as sequences, and what of them did not fit.

    Args:
        examples: In order.
        length: T, in tokens.
        filler: The token that fills sequences up.
        packing: Whether several may share a sequence; else each begins one.
    """
    rows = _Rows(length, packing)
    for example in examples:
        rows.add(example)
    count = len(rows.kept)
    tokens = torch.full((count, length), filler, dtype=torch.int32, device="cpu")
    segments = torch.full((count, length), _FILLER, dtype=torch.int32, device="cpu")
    predict = torch.zeros((count, length), dtype=torch.bool, device="cpu")
    for row, pieces in enumerate(rows.kept):
        at = 0
        for number, (ids, learnt) in enumerate(pieces):
            end = at + len(ids)
            tokens[row, at:end] = torch.tensor(ids, dtype=torch.int32, device="cpu")
            segments[row, at:end] = number
            predict[row, at : end - 1] = torch.tensor(learnt[1:], dtype=torch.bool, device="cpu")
            at = end
    return Sequences(tokens, segments, predict), rows.cut


_Piece = tuple[list[int], list[bool]]


class _Rows:
    """Fills sequences up in order: an example that does not fit into the last one begins another."""

    def __init__(self, length: int, packing: bool) -> None:
        self._length = length
        self._packing = packing
        self._room = 0
        self.kept: list[list[_Piece]] = []
        self.cut = Cut()

    def add(self, example: Example) -> None:
        if example.is_text:
            for piece in self._pieces(example):
                self._put(piece)
            return
        left_out = max(len(example.tokens) - self._length, 0)
        piece = example.tokens[: self._length], example.learnt[: self._length]
        learnable = any(piece[1][1:])
        if left_out or not learnable:
            cut = self.cut
            self.cut = Cut(cut.examples + bool(left_out), cut.tokens + left_out, cut.dropped + (not learnable))
        if learnable:
            self._put(piece)

    def _pieces(self, example: Example) -> Iterator[_Piece]:
        """A text in pieces. Each begins with the last token of the one before, so that none goes unlearnt."""
        for begin in range(0, max(len(example.tokens) - 1, 0), self._length - 1):
            end = begin + self._length
            yield example.tokens[begin:end], example.learnt[begin:end]

    def _put(self, piece: _Piece) -> None:
        size = len(piece[0])
        if not self._packing or size > self._room:
            self.kept.append([])
            self._room = self._length
        self.kept[-1].append(piece)
        self._room -= size
