"""The aggregator of a simulated run: the same `core`, driven as the aggregator's loop drives it, without a log.

Updates come as they are received; what clients then hear is the newest version. Everything happens at a time that the
caller names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.codec import Layout, weights_digest
from llmos_stream.core import (
    Effect,
    Expected,
    Folded,
    NewVersion,
    Participants,
    Refused,
    Rule,
    Update,
    next_deadline,
    start,
    step,
    take_back,
    tick,
)
from llmos_stream.core.participants import MOST
from llmos_stream.core.participation import check_room, check_wanted
from llmos_stream.core.speeds import Speeds
from llmos_stream.core.state import release
from llmos_stream.errors import Rejected
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.version_chain import VersionChain
from llmos_stream.training.local_steps import STEPS_PER_SECOND
from llmos_stream.types import Contribution, ParticipationRules

_MANY = Expected(MOST)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one update, and of the version that it completed."""

    folded: Contribution | None = None
    refused: str | None = None
    version: int | None = None
    """The version that came of it."""
    lost: Sequence[str] = ()
    """Clients whose folded updates are refused after all, since their version must not be published."""


class Aggregator:
    """One aggregator. `weights` (flat) are those of version 0, as readers have them."""

    def __init__(self, settings: RunSettings, layout: Layout, weights: Tensor) -> None:
        self._layout = layout
        self.rule = Rule(settings.aggregation, settings.staleness, settings.server_optimizer)
        self.state = start(weights, layout.digest, 0, rule=self.rule, buffers=layout.buffers)
        self._chain = VersionChain(settings, layout, weights)
        self._participants = Participants()
        self._speeds = Speeds()
        self.fastest = 0.0
        """Steps a second of the fastest client, as clients are told."""
        own = settings.participation
        self._gate = ParticipationRules(tuple(own.clients.split(",")), own.at_once, own.min_examples)
        self._is_open = self._gate == ParticipationRules()
        # Who takes part is asked for in these cases alone.
        self._counts_clients = self.state.adapts or own.at_once is not None or settings.client.local_steps == "auto"
        self._moments: Mapping[str, Tensor] = {}

    @property
    def version(self) -> int:
        return self.state.version

    @property
    def weights(self) -> Tensor:
        """Those of the newest version, as readers have them; never written to."""
        return self._chain.weights

    def digest(self) -> str:
        """That of the newest version's weights."""
        return weights_digest(self.weights).hex()

    def download_size(self, held: int | None) -> int:
        """Bytes that a reader fetches to come to the newest version, from the one that it holds."""
        return self._chain.download_size(held, self.version)

    def take(self, update: Update, now: float) -> Taken:
        """Take an update in at time `now`."""
        head, version = update.head, self.state.version
        if not self._is_open:
            try:
                check_wanted(head, self._gate, None)
                check_room(self._participants.has(head.client_id, now), self._participants.count(now), self._gate)
            except Rejected as error:
                return Taken(refused=error.reason)
        expected = _MANY
        if self._counts_clients:
            expected = self._participants.expected(head.client_id, head.base_version, now)
        self.state, effects = step(self.state, update, now, expected)
        match effects[0]:
            case Folded(contribution):
                if self._counts_clients:
                    self._participants.folded(head.client_id, head.base_version, version, now)
                if STEPS_PER_SECOND in head.metrics:
                    self._speeds.note(head.client_id, head.metrics[STEPS_PER_SECOND])
                return self._published(effects[1:], now, contribution)
            case Refused(reason):
                return Taken(refused=reason)
            case _:
                return Taken(refused="duplicate")

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return next_deadline(self.state)

    def tick(self, now: float) -> Taken:
        """Let time pass."""
        self.state, effects = tick(self.state, now)
        return self._published(effects, now, None)

    def _published(self, effects: Sequence[Effect], now: float, folded: Contribution | None) -> Taken:
        new = next((effect for effect in effects if isinstance(effect, NewVersion)), None)
        if new is None:
            return Taken(folded)
        parent = self._chain.weights
        weights = self._chain.encode(new.number, new.weights)
        try:
            self.state.pipeline.guard(parent, weights, self._layout.tensors)
        except Rejected:
            self._chain.take_back()
            self.state = take_back(self.state, parent, self._moments, new.range)
            return Taken(folded, lost=[item.client_id for item in new.manifest])
        self._chain.commit()
        self.state = release(self.state, weights)
        # The live tensors are overwritten by the next version.
        self._moments = {name: tensor.clone() for name, tensor in new.moments.items()}
        if self._counts_clients:
            self._participants.made(new.number, now)
        if self._speeds.fastest(1):
            self.fastest = self._speeds.fastest(self._participants.count(now))
        return Taken(folded, version=new.number)
