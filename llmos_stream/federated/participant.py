"""A client whose model is no module of torch: weights in, weights out, as a mapping of names to arrays.

with Participant({"coef": coef, "intercept": intercept}) as participant:
    while not participant.finished:
        weights = participant.receive()
        ...
        participant.send(weights, num_examples=n)

In an event loop: `async with await asyncio.to_thread(Participant, weights) as participant:`, `areceive` and `asend`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmos_stream.config import Settings, settings_of
from llmos_stream.errors import TaskError
from llmos_stream.federated.arrays import Array, SharedArrays, Weights
from llmos_stream.federated.member import Member
from llmos_stream.federated.membership import kept_in
from llmos_stream.federated.update import Update
from llmos_stream.roles.aggregator import Initial
from llmos_stream.roles.client.personal import PersonalFile


class Participant(Member):
    """One client of a federation, whose weights are a mapping of names to numpy arrays or torch tensors.

    `weights` say which arrays there are, of which shapes and dtypes; where it is alone in its federation they are
    version 0. Floating arrays are shared, or those alone whose names match the patterns of `task.share`; the others are
    kept here as they are, and over restarts in the client's state folder if a floating one is among them. `buffers`
    names those that are measurements, such as running means, and are averaged as values. The other arguments are those
    of `FederatedLearning`.

    Raises ConfigError for settings that make no sense, TaskError for arrays that cannot be shared (objects, complex
    numbers), by name, and BrokerUnavailable when no broker answers.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        buffers: Collection[str] = (),
        federation: str | None = None,
        broker: str | Sequence[str] | None = None,
        settings: Settings | Mapping[str, Any] | Path | str | None = None,
    ) -> None:
        named = {"federation.name": federation, "broker.bootstrap_servers": broker}
        known = settings_of(settings, named)
        self._arrays = arrays = SharedArrays(weights, buffers, known.task.share)
        self._update: Update | None = None
        kept = PersonalFile(kept_in(known))
        kept.restore(arrays.put)
        super().__init__(known, arrays, self._initial)
        self._joined.keep = lambda: kept.write(arrays.own())

    def receive(self) -> dict[str, Array]:
        """The newest version, as soon as it is time to train on it: arrays of the dtypes and kinds that were given.

        They are the caller's own, to be written to. A version that was received before and not sent is forgotten. Once
        the run has ended (`finished` says so) it is the last version.

        Raises:
            BrokerUnavailable: the federation has no version at all.
        """
        self._next().begin()
        return self._arrays.received

    def send(self, weights: Weights, *, num_examples: int, metrics: Mapping[str, Any] | None = None) -> Update:
        """Send what training has made of the version that was received, and on how many examples.

        Returns the update: its `sequence` and `sent_bytes`, or why it was not sent: `rejected`, where too many
        versions came meanwhile, `finished`, where the run has ended.

        Raises:
            TaskError: nothing was received since the last call, the arrays are others than those of the start, or a
                number is NaN or infinite. What is wrong can be set right, and sent again.
        """
        update = self._filled(weights, num_examples, metrics)
        update.send()
        return update

    async def areceive(self) -> dict[str, Array]:
        """As `receive`, for callers in an event loop."""
        await self._next().abegin()
        return self._arrays.received

    async def asend(self, weights: Weights, *, num_examples: int, metrics: Mapping[str, Any] | None = None) -> Update:
        """As `send`, for callers in an event loop."""
        update = self._filled(weights, num_examples, metrics)
        await update.asend()
        return update

    def _initial(self) -> Initial:
        return Initial(self._arrays.layout, self._arrays.initial, self._arrays.others)

    def _next(self) -> Update:
        if self._update is not None:
            self._update.skip()
        self._update = Update(self._joined, self)
        return self._update

    def _filled(self, weights: Weights, num_examples: int, metrics: Mapping[str, Any] | None) -> Update:
        update = self._update
        if update is None or not (update.start or update.finished):
            raise TaskError("nothing was received since the last update: call receive() first")
        self._arrays.take(weights)
        update.num_examples, update.metrics = num_examples, dict(metrics or {})
        return update
