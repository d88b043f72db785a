"""Which models work and which are refused, with which line: the table in the room's README, made by `zoo`."""

from pathlib import Path

import pytest
import torch
from torch import nn

import llmos_stream.training
from llmos_stream import FederatedLearning
from tests.training.zoo import KINDS, outcome, row

_PAGE = Path(llmos_stream.training.__file__).with_name("README.md")


@pytest.mark.parametrize("name", KINDS)
def test_the_readme_says_what_becomes_of_each_kind_of_model(name: str) -> None:
    assert row(name, outcome(KINDS[name])) in _PAGE.read_text().splitlines(), "python -m tests.training.zoo prints it"


def test_the_readme_names_no_other_kinds() -> None:
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(KINDS) + 2


def test_a_hugging_face_model_trains_on_the_batches_of_its_own_collators() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    rows = torch.randint(0, 64, (4, 8))
    batch = transformers.BatchEncoding({"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows})
    with FederatedLearning(model, [batch], torch.optim.AdamW(model.parameters(), lr=1e-2)) as federation:
        losses = [float(federation.train(epoch)["loss"]) for epoch in range(3)]
        transformers.GPT2LMHeadModel(config).load_state_dict(federation.global_state())
    assert losses[2] < losses[0]
