"""A federation in a clock of its own: the sites follow the client policy, and `core` folds what they send.

Nobody waits: what happens next is what is due next. Updates arrive at once and as they are, without a codec. Everything
follows from the settings and from what the sites hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count

from torch import Tensor

from llmos_stream.codec import Layout, spec_of
from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, Settings, StalenessSettings
from llmos_stream.core import (
    Effect,
    Folded,
    NewVersion,
    Participants,
    Rule,
    State,
    Update,
    next_deadline,
    start,
    step,
    tick,
)
from llmos_stream.core.client_policy import (
    Heard,
    Look,
    PolicyEvent,
    PolicyState,
    Send,
    Train,
    TrainingDone,
    UpdateSent,
    Wait,
    WaitReason,
    join,
    next_action,
)
from llmos_stream.scenarios.site import Site
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import UpdateHead

Observe = Callable[[float, int, Tensor], None]
"""Told the time, the number and the weights of each version."""

_NO_CODEC = spec_of(Settings().codec.model_copy(update={"name": "float32"}))


def run_asynchronous(sites: Sequence[Site], settings: Settings, seconds: float, observe: Observe) -> int:
    """Let the sites train for so many seconds of the clock; how many updates were folded."""
    federation = _Federation(sites, settings, observe)
    federation.run(seconds)
    return federation.folded


def run_synchronous(sites: Sequence[Site], seconds: float, observe: Observe) -> int:
    """FedAvg (McMahan et al. 2017): in each round every site trains, and all wait for the slowest.

    Returns how many updates were folded.
    """
    everybody = AggregationSettings(buffer_size=len(sites), deadline_seconds=seconds + 1, clip_multiple=0, max_share=1)
    local = sites[0].local
    state = _state(local.layout, local.weights(), Rule(everybody, StalenessSettings(), ServerOptimizerSettings()))
    slowest = max(site.place.seconds for site in sites)
    rounds = int(seconds / slowest)
    observe(0.0, 0, state.weights)
    for number in range(rounds):
        for offset, site in enumerate(sites):
            trained = site.train(state.weights, number)
            update = _update(site, trained, number, local.layout, offset)
            state, _ = step(state, update, number * slowest)
        observe((number + 1) * slowest, state.version, state.weights)
    return rounds * len(sites)


def _state(layout: Layout, weights: Tensor, rule: Rule) -> State:
    return start(weights, layout.digest, rule=rule, buffers=layout.buffers)


def _update(site: Site, trained: Trained, sequence: int, layout: Layout, offset: int) -> Update:
    head = UpdateHead(
        client_id=site.place.name.replace(" ", "-"),
        sequence=sequence,
        base_version=trained.base_version,
        num_examples=trained.num_examples,
        layout_digest=layout.digest,
        codec=_NO_CODEC,
        payload_size=1,
        payload_digest=bytes(32),
        metrics=trained.metrics,
    )
    return Update(head, 0, offset, trained.delta, trained.buffers)


@dataclass(slots=True, eq=False)
class _Client:
    site: Site
    policy: PolicyState
    base: tuple[int, Tensor]
    """The version that it trains on."""
    trained: Trained | None = None
    sequence: int = 0
    waits: int = 0
    """Counts what it has waited for, so that it is not woken for what is past."""


class _Federation:
    def __init__(self, sites: Sequence[Site], settings: Settings, observe: Observe) -> None:
        self._settings, self._observe = settings, observe
        self._layout = sites[0].local.layout
        weights = sites[0].local.weights()
        rule = Rule(settings.aggregation, settings.staleness, settings.server_optimizer)
        self._state = _state(self._layout, weights, rule)
        self._participants = Participants()
        self._clients = [_Client(site, join(settings.client, 0.0), (0, weights)) for site in sites]
        self._heard = Heard(newest=0, pace_seconds=settings.client.pace_seconds)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._offsets = count(), count()
        self._waiting: dict[_Client, None] = {}
        self._now = 0.0
        self._deadline: float | None = None
        self.folded = 0

    def run(self, seconds: float) -> None:
        self._observe(0.0, 0, self._state.weights)
        for client in self._clients:
            self._act(client, self._heard)
        while self._due and self._due[0][0] <= seconds:
            self._now, _, act = heappop(self._due)
            act()

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heappush(self._due, (when, next(self._order), act))

    def _act(self, client: _Client, event: PolicyEvent) -> None:
        """Tell a client what has happened, and do what it does then."""
        client.waits += 1
        self._waiting.pop(client, None)
        while True:
            client.policy, action = next_action(client.policy, event, self._now)
            match action:
                case Train():
                    client.base = self._state.version, self._state.weights
                    self._at(self._now + client.site.place.seconds, partial(self._trained, client))
                    return
                case Look():
                    event = self._heard
                case Send():
                    self._send(client)
                    event = UpdateSent()
                case Wait(until, reason):
                    if client.policy.heard is not self._heard:
                        event = self._heard
                        continue
                    self._wait(client, until, reason)
                    return
                case _:
                    return

    def _wait(self, client: _Client, until: float, reason: WaitReason) -> None:
        if reason is WaitReason.VERSION:
            self._waiting[client] = None
        if until < math.inf:
            self._at(until, partial(self._wake, client, client.waits))

    def _wake(self, client: _Client, waits: int) -> None:
        if client.waits == waits:
            self._act(client, self._heard)

    def _trained(self, client: _Client) -> None:
        """A training has taken its time: what came of it is computed only now."""
        version, weights = client.base
        client.trained = client.site.train(weights, version)
        self._act(client, TrainingDone(version, client.site.place.seconds))

    def _send(self, client: _Client) -> None:
        if client.trained is None:
            raise RuntimeError("a client sent what it had not trained")
        update = _update(client.site, client.trained, client.sequence, self._layout, next(self._offsets))
        client.sequence += 1
        head, version = update.head, self._state.version
        expected = self._participants.expected(head.client_id, head.base_version, self._now)
        self._state, effects = step(self._state, update, self._now, expected)
        if isinstance(effects[0], Folded):
            self.folded += 1
            self._participants.folded(head.client_id, head.base_version, version, self._now)
        self._settle(effects)

    def _tick(self) -> None:
        self._state, effects = tick(self._state, self._now)
        self._settle(effects)

    def _settle(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, NewVersion):
                self._participants.made(effect.number, self._now)
                self._heard = replace(self._heard, newest=effect.number)
                self._observe(self._now, effect.number, self._state.weights)
                if self._waiting:
                    self._at(self._now, self._tell)
        deadline = next_deadline(self._state)
        if deadline is not None and deadline != self._deadline:
            self._at(deadline, self._tick)
        self._deadline = deadline

    def _tell(self) -> None:
        """Who waits for a version hears of it, once what happens now has happened."""
        for client in list(self._waiting):
            self._act(client, self._heard)
