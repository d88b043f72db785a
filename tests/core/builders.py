"""Small makers of updates, and a deep look into a state."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from llmos_stream.core import NewVersion, State, Update, step
from llmos_stream.types import CodecSpec, Contribution, UpdateHead

LAYOUT = bytes(range(32))
_offsets = itertools.count()


def head(
    sequence: int = 0,
    base: int = 0,
    examples: int = 1,
    client: str = "ann",
    layout: bytes = LAYOUT,
) -> UpdateHead:
    return UpdateHead(client, sequence, base, examples, layout, CodecSpec(1), 0, b"digest")


def update(
    delta: Sequence[float] | Tensor,
    sequence: int = 0,
    base: int = 0,
    examples: int = 1,
    client: str = "ann",
    layout: bytes = LAYOUT,
) -> Update:
    flat = delta if isinstance(delta, Tensor) else torch.tensor(delta, dtype=torch.float32)
    return Update(head(sequence, base, examples, client, layout), 0, next(_offsets), flat)


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
    if isinstance(thing, Tensor | BaseModel | str | bytes | int | float | torch.device | None):
        yield thing
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
