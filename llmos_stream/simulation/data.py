"""Which examples each client has, and in which order it trains on them, as functions of the seed.

Nothing is kept for a client but a few numbers: what a training needs is computed for many clients at once. The order of
a client's n-th pass over its examples depends on seed, client and n alone, so that it is the same whether models are
trained one by one or together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos_stream.config import ClientSettings
from llmos_stream.errors import ConfigError
from llmos_stream.simulation.settings import DataSettings
from llmos_stream.training.partition import dirichlet_split
from llmos_stream.training.seeds import derive_seed

Integers = NDArray[np.int64]
_MIXES = 1 << 16
"""So many different mixes of classes are drawn at most; more clients share them."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What several clients train on. `examples`: [clients, steps, batch]; `sizes`: [clients, steps].

    Of a batch the first `sizes` examples count; a client that does fewer steps has sizes of 0 at its end.
    """

    examples: Integers
    sizes: Integers


class SplitData:
    """Examples in memory, split over `clients` clients."""

    def __init__(
        self, tensors: tuple[Tensor, Tensor], settings: DataSettings, client: ClientSettings, clients: int, seed: int
    ) -> None:
        self.inputs, self.labels = tensors
        self._batch = client.batch_size
        self._epochs = client.epochs
        self._local_steps = client.local_steps if isinstance(client.local_steps, int) else None
        self._seed = derive_seed(seed, "simulation.data")
        labels = self.labels.numpy()
        self._classes = int(labels.max()) + 1
        self._parts: Integers | None = None
        if settings.split == "drawn":
            self._draw(settings, labels, clients)
        else:
            self._deal(settings, labels, clients)

    def _deal(self, settings: DataSettings, labels: Integers, clients: int) -> None:
        if clients > len(labels):
            raise ConfigError(
                f"population.clients: {clients} clients, and the task has {len(labels)} examples; "
                'say data.split = "drawn", which lets each client draw its own'
            )
        generator = np.random.default_rng(self._seed)
        if settings.split == "even":
            widths = np.exp(generator.standard_normal(clients) * settings.size_sigma)
            ends = np.cumsum(widths / widths.sum())[:-1] * (len(labels) - clients)
            # One example each, and of the others what is its due.
            cuts = np.round(ends).astype(np.int64) + np.arange(1, clients)
            parts = np.split(generator.permutation(len(labels)), cuts)
        else:
            parts = dirichlet_split(labels, clients, settings.alpha, self._seed)
        self.counts = np.array([len(part) for part in parts], np.int64)
        self._starts = np.cumsum(self.counts) - self.counts
        self._parts = np.concatenate(parts)
        self._mix = (
            np.stack([np.bincount(labels[part], minlength=self._classes) for part in parts]) / self.counts[:, None]
        )

    def _draw(self, settings: DataSettings, labels: Integers, clients: int) -> None:
        generator = np.random.default_rng(self._seed)
        sizes = settings.examples * np.exp(generator.standard_normal(clients, np.float32) * settings.size_sigma)
        self.counts = np.maximum(np.round(sizes), 1).astype(np.int64)
        per_class = np.bincount(labels, minlength=self._classes)
        concentration = np.where(per_class > 0, settings.alpha, 1e-9)
        self._mix = generator.dirichlet(concentration, min(clients, _MIXES))
        self._bounds = np.cumsum(self._mix, axis=1)[:, :-1]
        self._by_class = np.argsort(labels, kind="stable")
        self._class_starts, self._class_counts = np.cumsum(per_class) - per_class, per_class

    def mix(self, client: int) -> NDArray[np.float64]:
        """The share of each class among a client's examples, or those that it draws from."""
        found: NDArray[np.float64] = self._mix[client % len(self._mix)]
        return found

    def steps_of(self, client: int) -> int:
        """Steps of one training."""
        return self._local_steps or self._epochs * self._batches(client)

    def seen(self, client: int, number: int) -> int:
        """Examples that the client's training of this number goes through."""
        count = int(self.counts[client])
        if self._local_steps is None:
            return self._epochs * count
        batches = self._batches(client)
        whole, rest = divmod(self._local_steps, batches)
        if not rest:
            return whole * count
        first = number * self._local_steps
        sizes = (min(self._batch, count - (first + step) % batches * self._batch) for step in range(rest))
        return whole * count + sum(sizes)

    def counted(self, client: int, number: int) -> int:
        """For how many examples its update counts: those of the last pass, as of a client on Kafka."""
        return int(self.counts[client]) if self._local_steps is None else self.seen(client, number)

    def _batches(self, client: int) -> int:
        return -(-int(self.counts[client]) // self._batch)

    def one_pass(self, client: int, number: int) -> Sequence[tuple[Tensor, Tensor]]:
        """The batches of the client's pass of this number over its examples."""
        return list(self._as_batches(self._planned([client], np.array([number]) * self._batches(client), None)))

    def passes(self, client: int, number: int) -> Sequence[Sequence[tuple[Tensor, Tensor]]]:
        """The batches of one training, pass by pass."""
        steps = self.steps([client], [number])
        batches = list(self._as_batches(steps))
        if self._local_steps is not None:
            return [batches]
        size = len(batches) // self._epochs
        return [batches[at : at + size] for at in range(0, len(batches), size)]

    def _as_batches(self, steps: Steps) -> Iterator[tuple[Tensor, Tensor]]:
        for examples, size in zip(steps.examples[0], steps.sizes[0], strict=True):
            chosen = torch.from_numpy(examples[:size])
            yield self.inputs[chosen], self.labels[chosen]

    def steps(self, clients: Sequence[int], numbers: Sequence[int]) -> Steps:
        """What each of `clients` trains on in its training of that number (counted from 0)."""
        counts = self.counts[np.asarray(clients, np.int64)]
        batches = -(-counts // self._batch)
        todo = np.full_like(counts, self._local_steps) if self._local_steps else self._epochs * batches
        return self._planned(clients, np.asarray(numbers, np.int64) * todo, todo)

    def _planned(self, clients: Sequence[int], first: Integers, todo: Integers | None) -> Steps:
        """The steps from the `first` on, counted over all passes, that are `todo`; None: those of one pass."""
        who = np.asarray(clients, np.int64)
        counts = self.counts[who]
        batches = -(-counts // self._batch)
        todo = batches if todo is None else todo
        passes, span = first // batches, int(((first + todo - 1) // batches - first // batches).max()) + 1
        order = self._orders(who, counts, passes, span)
        step = first[:, None] + np.arange(int(todo.max()))
        turn, batch = step // batches[:, None] - passes[:, None], step % batches[:, None]
        position = batch[:, :, None] * self._batch + np.arange(self._batch)
        sizes = np.clip(counts[:, None] - batch * self._batch, 0, self._batch)
        sizes[np.arange(sizes.shape[1]) >= todo[:, None]] = 0
        here = np.arange(len(who))[:, None, None]
        turn, position = np.minimum(turn, span - 1)[:, :, None], np.minimum(position, counts[:, None, None] - 1)
        return Steps(self._examples(who[:, None, None], order[here, turn, position]), sizes)

    def _orders(self, who: Integers, counts: Integers, passes: Integers, span: int) -> Integers:
        """[clients, passes, positions]: the order of each pass; what lies behind a client's count is arbitrary."""
        most = int(counts.max())
        turns = (passes[:, None] + np.arange(span))[:, :, None]
        keys = _mixed(self._seed, 1, who[:, None, None], (turns << 32) + np.arange(most))
        keys >>= np.uint64(1)
        if int(counts.min()) < most:
            keys[np.broadcast_to(np.arange(most) >= counts[:, None, None], keys.shape)] = np.uint64(2**64 - 1)
        return np.argsort(keys, axis=2)

    def _examples(self, who: Integers, position: Integers) -> Integers:
        """Which examples the clients have at these positions."""
        if self._parts is not None:
            found: Integers = self._parts[self._starts[who] + position]
            return found
        chance = _unit(_mixed(self._seed, 2, who, position))
        label = (chance[..., None] >= self._bounds[(who % len(self._mix))]).sum(axis=-1)
        place = _unit(_mixed(self._seed, 3, who, position)) * self._class_counts[label]
        drawn: Integers = self._by_class[self._class_starts[label] + place.astype(np.int64)]
        return drawn


def _mixed(seed: int, purpose: int, who: Integers, at: Integers) -> NDArray[np.uint64]:
    """64 random bits for each client and place: SplitMix64 (Steele et al. 2014) over both."""
    own = _split_mix(who.astype(np.uint64) + np.uint64((seed * 8 + purpose) % 2**64))
    return _split_mix(own + at.astype(np.uint64))


def _split_mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value * np.uint64(0x9E3779B97F4A7C15)
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


def _unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
