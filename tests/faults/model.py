"""The model of a run that is made up, and what its clients publish: it follows from the plan, nothing from training."""

import hashlib

import torch
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.roles.aggregator import Initial
from tests.faults.plan import Plan


def layout_of(plan: Plan) -> Layout:
    pieces = torch.zeros(plan.numel - 10).tensor_split(plan.fragments)
    return Layout.of({f"w{place or ''}": piece for place, piece in enumerate(pieces)} | {"b": torch.zeros(2, 5)})


def initial_of(plan: Plan) -> Initial:
    return Initial(layout_of(plan), _normal(plan.numel, plan.seed, "initial", 0))


def delta_of(plan: Plan, client: str, number: int) -> Tensor:
    """What a client publishes as its `number`-th update, whatever has happened to it."""
    return _normal(plan.numel, plan.seed, client, number) * 0.1


def examples_of(plan: Plan, client: str, number: int) -> int:
    return 1 + _number(plan.seed, client, number) % 50


def _normal(count: int, seed: int, name: str, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(_number(seed, name, number))
    return torch.randn(count, generator=generator)


def _number(seed: int, name: str, number: int) -> int:
    digest = hashlib.blake2b(f"{seed} {number} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
