"""Sequences of one length: nothing is lost in silence, and none sees another."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.training.batches import Parts
from llmos_stream.training.llm.sequences import Cut, SequenceBatches, sequences_of
from llmos_stream.training.llm.texts import Example
from llmos_stream.training.local import LocalTrainer, evaluate
from tests.training.llm.aids import llm_task, write_lines

_LENGTH, _FILLER = 8, 99


def _text(size: int, first: int = 1) -> Example:
    return Example(list(range(first, first + size)), [True] * size, is_text=True)


def _answer(prompt: int, completion: int) -> Example:
    return Example(list(range(prompt + completion)), [False] * prompt + [True] * completion, is_text=False)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), packing=st.booleans())
def test_each_token_of_a_text_but_its_first_is_learnt_once(sizes: list[int], packing: bool) -> None:
    begins = [1000 * place for place in range(len(sizes))]
    texts = [_text(size, first) for size, first in zip(sizes, begins, strict=True)]
    found, cut = sequences_of(texts, _LENGTH, _FILLER, packing=packing)
    batch: Any = found.batch()
    expected = [token for text in texts for token in text.tokens[1:]]
    assert batch[1].tolist() == expected
    assert found.num_tokens == len(expected)
    assert cut == Cut()


def test_what_is_behind_the_end_of_a_sequence_is_counted() -> None:
    examples = [_answer(2, 3), _answer(2, 10), _answer(12, 4), _answer(3, 0)]
    found, cut = sequences_of(examples, _LENGTH, _FILLER, packing=False)
    assert cut == Cut(examples=2, tokens=4 + 8, dropped=2)
    assert len(found) == 2
    assert found.num_tokens == 3 + 6


def test_short_examples_share_a_sequence_where_packing_is_on() -> None:
    examples = [_answer(1, 2)] * 5
    packed, _ = sequences_of(examples, _LENGTH, _FILLER, packing=True)
    alone, _ = sequences_of(examples, _LENGTH, _FILLER, packing=False)
    assert (len(packed), len(alone)) == (3, 5)
    assert packed.segments[0].tolist() == [0, 0, 0, 1, 1, 1, -1, -1]
    assert packed.num_tokens == alone.num_tokens == 10


def test_batches_come_in_another_order_each_time_and_hold_all_sequences() -> None:
    sequences, _ = sequences_of([_text(50)], _LENGTH, _FILLER, packing=True)
    batches = SequenceBatches(sequences, 3, micro_batch=2, shuffle_seed=1)
    first, second = (list(map(_targets, batches)) for _ in range(2))
    assert first != second
    assert len(first) == len(batches) == 3
    for targets in (first, second):
        assert sorted(chain.from_iterable(targets)) == list(range(2, 51))


def _targets(batch: Any) -> list[int]:
    parts = batch if isinstance(batch, Parts) else [batch]
    return list(chain.from_iterable(targets.tolist() for _, targets in parts))


def test_a_packed_example_has_the_loss_that_it_has_alone(tiny: Path, tmp_path: Path) -> None:
    answers = [{"prompt": "peace", "completion": f" with {word}"} for word in ("all", "us", "them", "you", "me")]
    path = write_lines(tmp_path / "a.jsonl", answers)
    packed, alone = (
        llm_task(tiny, path, holdout=0, sequence=64, packing=packing, lora={"rank": 0}) for packing in (True, False)
    )
    assert len(packed.train_batches()) < len(alone.train_batches())
    model = packed.model()
    one, other = (evaluate(model, task.train_batches(), task.loss, task.metrics()) for task in (packed, alone))
    assert one["num_examples"] == other["num_examples"]
    for name in ("loss", "accuracy", "perplexity"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_micro_batches_give_the_weights_that_whole_batches_give(tiny: Path, tmp_path: Path) -> None:
    answers = [{"prompt": "peace", "completion": " with" * (1 + place)} for place in range(7)]
    path = write_lines(tmp_path / "a.jsonl", answers)
    weights = []
    for micro_batch in (None, 1, 3):
        task = llm_task(tiny, path, holdout=0, micro_batch=micro_batch, packing=False)
        model = task.model()
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
        done = LocalTrainer(model, optimizer, task.loss).run_epoch(task.train_batches())
        assert done.steps == 2
        assert done.num_examples == task.num_train_examples()
        weights.append(torch.cat([one.detach().flatten() for one in model.parameters() if one.requires_grad]))
    assert weights[0].abs().max() > 0
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-7)
