"""A loop of accelerate, as the documentation has it, with the real library."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream import FederatedLearning
from tests.federated.page import run_snippet


def test_the_snippet_of_the_page_trains() -> None:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    names: dict[str, Any] = {
        "nn": nn,
        "FederatedLearning": FederatedLearning,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=16),
    }
    run_snippet("accelerate", names)
    assert not torch.equal(model.weight, before)
    assert names["update"].sequence is not None
