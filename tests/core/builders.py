"""Small makers of updates, and a deep look into a state."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from llmos_stream import core
from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.config.plugins import NoOptions
from llmos_stream.core import NewVersion, Rule, State, Update, step
from llmos_stream.core.optimizer import BUILT_IN, ServerOptimizer
from llmos_stream.types import CodecSpec, Contribution, UpdateHead

LAYOUT = bytes(range(32))
_offsets = itertools.count()


def head(
    sequence: int = 0,
    base: int = 0,
    examples: int = 1,
    client: str = "ann",
    layout: bytes = LAYOUT,
    metrics: Mapping[str, float] | None = None,
) -> UpdateHead:
    return UpdateHead(client, sequence, base, examples, layout, CodecSpec(1), 0, b"digest", metrics or {})


def update(
    delta: Sequence[float] | Tensor,
    sequence: int = 0,
    base: int = 0,
    examples: int = 1,
    client: str = "ann",
    layout: bytes = LAYOUT,
    metrics: Mapping[str, float] | None = None,
) -> Update:
    flat = delta if isinstance(delta, Tensor) else torch.tensor(delta, dtype=torch.float32)
    return Update(head(sequence, base, examples, client, layout, metrics), 0, next(_offsets), flat)


def rule_of(
    aggregation: AggregationSettings | None = None,
    staleness: StalenessSettings | None = None,
    server_optimizer: ServerOptimizerSettings | None = None,
) -> Rule:
    """A rule of some settings; those left out take their defaults."""
    return Rule(
        aggregation or AggregationSettings(),
        staleness or StalenessSettings(),
        server_optimizer or ServerOptimizerSettings(),
    )


def start(
    weights: Tensor,
    layout_digest: bytes = LAYOUT,
    version: int = 0,
    *,
    aggregation: AggregationSettings | None = None,
    staleness: StalenessSettings | None = None,
    server_optimizer: ServerOptimizerSettings | None = None,
    **rest: Any,
) -> State:
    """`core.start` under the rule of some settings."""
    rule = rule_of(aggregation, staleness, server_optimizer)
    return core.start(weights, layout_digest, version, rule=rule, **rest)


def discount(tau: int, staleness: StalenessSettings) -> float:
    """s(tau) as a version's manifest has it of one example."""
    return rule_of(staleness=staleness).pipeline(0, torch.zeros(1)).weigh(1, tau)


def make_optimizer(settings: ServerOptimizerSettings, numel: int, device: str = "cpu") -> ServerOptimizer:
    """The optimiser that `settings` name, with fresh moments."""
    made: ServerOptimizer = BUILT_IN[settings.name](NoOptions(), settings, numel, torch.device(device))
    return made


def contribution(examples: int, weight: float, clip: float = 1.0, staleness: int = 0) -> Contribution:
    return Contribution("ann", 0, 0, 0, examples, staleness, weight, clip, b"digest")


def versions(state: State, updates: Sequence[Update], now: float = 0.0) -> list[NewVersion]:
    """What a run of updates publishes."""
    published = []
    for item in updates:
        state, effects = step(state, item, now)
        published += [effect for effect in effects if isinstance(effect, NewVersion)]
    return published


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def tensors_in(thing: object) -> list[Tensor]:
    """Every tensor that `thing` keeps alive, however deep, each storage once."""
    found = {leaf.untyped_storage().data_ptr(): leaf for leaf in _leaves(thing) if isinstance(leaf, Tensor)}
    return list(found.values())


def fingerprint(thing: object) -> list[object]:
    """All that `thing` holds, however deep, as plain values; tensors as their bytes."""
    return [leaf.numpy().tobytes() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(thing)]


def _leaves(thing: object) -> Iterator[object]:
    if isinstance(thing, Tensor | BaseModel | Rule | str | bytes | int | float | torch.device | None):
        yield thing
    elif isinstance(thing, FunctionType):
        yield thing.__qualname__
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield key
            yield from _leaves(value)
    elif isinstance(thing, list | tuple):
        yield len(thing)
        for value in thing:
            yield from _leaves(value)
    else:
        yield type(thing).__name__
        slots = [slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())]
        names = [*slots, *getattr(thing, "__dict__", {})]
        assert names, f"{thing!r} hides what it holds"
        for name in names:
            yield name
            yield from _leaves(getattr(thing, name))
