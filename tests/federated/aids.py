"""A small model, its data, and what the log of a `FederatedLearning` says."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llmos_stream import FederatedLearning
from llmos_stream.log.stream import value_of
from llmos_stream.wire import load_event

Batches = list[tuple[Tensor, Tensor]]


def model_of(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def batches_of(count: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 32, 16, generator=generator)
    return [(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()) for x in inputs]


def plain_epoch(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer) -> None:
    for inputs, targets in batches:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def same_weights(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, atol=atol) for a, b in pairs)


def told_of_trained(fl: FederatedLearning) -> list[dict[str, Any]]:
    """What was told of models that were trained alone."""
    federation = fl._membership._federation

    async def read() -> list[dict[str, Any]]:
        found: list[Any] = []
        async with federation.broker.reader([federation.topics.evaluations], start="earliest") as reader:
            while await reader.lag() > 0:
                found += [load_event(value_of(record)).data for record in await reader.poll(1.0)]
        return [dict(data) for data in found if data.get("trained_by") is not None]

    return fl._membership.run(read())
