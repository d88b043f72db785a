"""What a client does next, as a pure function of what it has done, what it has heard and the time.

    state = join(rules, now)
    state, action = next_action(state, event, now)

The caller performs the action and reports what came of it as the next event; it waits by listening to the control
topic, so that each `Wait` ends with a `Heard`. A live client and a simulated one differ in that caller alone.

A client's round:

1. Wait for a version newer than the one it trained on last. While none comes, it trains on the same version again
   after `wait_seconds`, then after twice as long, four times as long, up to `2 ** most_doublings` times: nobody folds
   at present, or slowly, and another update on the same version is worth less each time. A newer version resets this.
2. Wait while the federation is paused. What was trained before the pause is sent all the same.
3. Train. A slower device computes the same, later: it waits until the training would have taken
   `max(seconds, min_train_seconds) / speed`.
4. Look at the control topic, then send, once the pace allows it.

With `overlap` the caller may answer a `Send` with `UpdateKept`: the update is durable, and its sending goes on beside
what comes next. No version can have it yet, so the client waits for none: it trains at once on the newest. It sends
nothing and does not leave before what is in flight has arrived or was refused.

The pace (see `core.pace`) is how long the aggregator asks each client to leave between two updates. Two promises:

* A client begins to send an update no earlier than `pace_seconds` after it began to send the one before. It goes by the
  newest pace that its reader has received when it looks, which it does after the training and again while it waits. The
  aggregator writes the pace with its next sign of life, so an update may escape a new pace that was begun to be sent
  within `aggregator.beat_seconds` and the time that a record takes to its reader.
* It begins no training earlier than `pace_seconds` after it began the one before, so that what it sends is fresh.

The first update of a process is sent at once.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from llmos_stream.config import ClientSettings

MOST_DOUBLINGS = 6
LONGEST_PACE_SECONDS = 3600.0
"""A longer pace counts as this one, so that no control record can silence a client for good."""


def train_seconds(rules: ClientSettings, measured: float, share: float = 1.0) -> float:
    """How long a training that took `measured` seconds here takes on the device that this client stands for.

    `share` is how much of a whole training it was.
    """
    return max(measured, share * rules.min_train_seconds) / rules.speed


# Events: what happened


@dataclass(frozen=True, slots=True)
class Resumed:
    """The client is connected, for the first time or again, or something cut its last update short.

    It may hold an update that the log has not acknowledged.
    """


@dataclass(frozen=True, slots=True)
class Heard:
    """What the control topic says now. `newest` is the newest version, `ended` why the run has ended.

    `steps_per_second` is the speed of the fastest client, 0 where nobody has named one.
    """

    newest: int | None = None
    pace_seconds: float = 0.0
    steps_per_second: float = 0.0
    paused: bool = False
    ended: str | None = None
    stopping: bool = False
    unwanted: str | None = None
    """Why the operator does not want this client, where that is so."""
    rests_until: float = -math.inf
    """There was no room for this client: it begins no training before."""


@dataclass(frozen=True, slots=True)
class TrainingDone:
    """The training on version `base` has ended, after so many seconds. It was so much of a whole one."""

    base: int
    seconds: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class UpdateKept:
    """The update is durable, and being sent while the client goes on; `UpdateSent` or `UpdateRefused` will follow."""


@dataclass(frozen=True, slots=True)
class UpdateSent:
    """The log has acknowledged the update."""


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """The update was not sent, because it could not count any more."""


@dataclass(frozen=True, slots=True)
class UnsentSettled:
    """No update of an earlier connection or process waits any more. `sent` tells whether one was sent."""

    sent: bool


PolicyEvent = Resumed | Heard | TrainingDone | UpdateKept | UpdateSent | UpdateRefused | UnsentSettled


# Actions: what to do now


class WaitReason(Enum):
    """Why a client waits."""

    JOIN_DELAY = auto()
    VERSION = auto()
    PAUSE = auto()
    ROOM = auto()
    """As many others take part as the operator wants at once."""
    PACE = auto()
    SPEED = auto()
    LINK = auto()
    """An update is in flight."""
    BUSY = auto()
    """The caller has not reported yet what came of the last action."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Listen to the control topic, and report what it says as soon as something comes, at `until` at the latest."""

    until: float
    reason: WaitReason


@dataclass(frozen=True, slots=True)
class Train:
    """Train on the newest version, which is `version` as far as the client has heard."""

    version: int


@dataclass(frozen=True, slots=True)
class Look:
    """Take in all that has come on the control topic, without waiting for more, and report it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the update that was trained."""


@dataclass(frozen=True, slots=True)
class SendUnsent:
    """Send the update that was not acknowledged, if there is one; give it up once the run has ended."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Take part no longer."""

    reason: str


PolicyAction = Wait | Train | Look | Send | SendUnsent | Leave


class _Phase(Enum):
    IDLE = auto()
    TRAINING = auto()
    TRAINED = auto()
    SENDING = auto()


class PolicyState(NamedTuple):
    """What a client remembers. Times are those of `now`: seconds of any clock that does not go back.

    A tuple, because it is copied with each event: that takes a tenth of the time of a data class.
    """

    rules: ClientSettings
    joins_at: float
    most_doublings: int = MOST_DOUBLINGS
    heard: Heard = Heard()
    phase: _Phase = _Phase.IDLE
    in_flight: bool = False
    """Whether an update is being sent beside the phase."""
    updates: int = 0
    """How many updates were sent."""
    unsent: bool = False
    """Whether an earlier connection or process may have left an update unsent."""
    base: int | None = None
    """The version of the last update; None where nothing has come of the last training."""
    doublings: int = 0
    acknowledged_at: float = -math.inf
    """When the log acknowledged the last update."""
    begun_at: float = -math.inf
    """When the training of the last update began."""
    sending_at: float = -math.inf
    """When the client began to send, as far as is known."""
    sent_at: float = -math.inf
    """When it began to send the last update that may have reached the log."""
    ready_at: float = -math.inf
    """When a device of this client's speed would have ended its training."""
    looked: bool = False
    """Whether the client has looked at the control topic since its training."""

    @property
    def in_update(self) -> bool:
        """Whether an update is under way: in training, trained, or being sent while the client does nothing else."""
        return self.phase is not _Phase.IDLE


def join(rules: ClientSettings, now: float, most_doublings: int = MOST_DOUBLINGS) -> PolicyState:
    """A client that starts now. It joins after its delay: then report `Resumed`."""
    return PolicyState(rules, now + rules.join_delay_seconds, most_doublings)


def next_action(state: PolicyState, event: PolicyEvent, now: float) -> tuple[PolicyState, PolicyAction]:
    """Take in an event at time `now` and decide what to do now."""
    return decide(observe(state, event, now), now)


def observe(state: PolicyState, event: PolicyEvent, now: float) -> PolicyState:
    """Take in an event at time `now`, where the client does nothing yet."""
    match event:
        case Heard():
            return state if event is state.heard else state._replace(heard=event)
        case Resumed():
            if state.in_update:  # nothing has come of the training: the next may begin at once
                state = state._replace(phase=_Phase.IDLE, base=None, begun_at=-math.inf)
            # Nobody knows whether what was being sent has reached the log.
            return state._replace(unsent=True, in_flight=False, sent_at=max(state.sent_at, state.sending_at))
        case TrainingDone():
            ready_at = now + train_seconds(state.rules, event.seconds, event.share) - event.seconds
            return state._replace(phase=_Phase.TRAINED, base=event.base, ready_at=ready_at, looked=False)
        case UpdateKept():
            return state._replace(phase=_Phase.IDLE, in_flight=True)
        case UpdateSent():
            return state._replace(
                phase=_after_sending(state),
                in_flight=False,
                updates=state.updates + 1,
                unsent=False,
                sent_at=state.sending_at,
                acknowledged_at=now,
            )
        case UpdateRefused():
            begun_at = -math.inf if state.phase in {_Phase.IDLE, _Phase.SENDING} else state.begun_at
            return state._replace(phase=_after_sending(state), in_flight=False, unsent=False, begun_at=begun_at)
        case UnsentSettled(sent=True):
            return state._replace(unsent=False, updates=state.updates + 1, sent_at=state.sending_at)
        case UnsentSettled():
            return state._replace(unsent=False)


def decide(state: PolicyState, now: float) -> tuple[PolicyState, PolicyAction]:
    """What to do at time `now`, and the state of a client that does it."""
    action = _action(state, now)
    match action:
        case Train():
            state = state._replace(phase=_Phase.TRAINING, begun_at=now, doublings=_next_doublings(state))
        case Look():
            state = state._replace(looked=True)
        case Send():
            state = state._replace(phase=_Phase.SENDING, sending_at=now)
        case SendUnsent():
            state = state._replace(sending_at=now)
    return state, action


def expected_by(state: PolicyState) -> float:
    """Until when the client waits for a version newer than that of its last update; in the past when it does not."""
    if state.in_flight or _has_newer(state):
        return -math.inf
    return state.acknowledged_at + state.rules.wait_seconds * 2.0**state.doublings


def is_too_stale(base: int, newest: int | None, maximum: int | None) -> bool:
    """Whether an update on version `base` cannot count any more. None where something is not known."""
    return newest is not None and maximum is not None and newest - base > maximum


def _action(state: PolicyState, now: float) -> PolicyAction:
    heard = state.heard
    if heard.ended is not None and state.unsent and not heard.stopping:
        return SendUnsent()
    if (reason := _reason_to_leave(state)) is not None:
        return Wait(math.inf, WaitReason.LINK) if state.in_flight else Leave(reason)
    if now < state.joins_at:
        return Wait(state.joins_at, WaitReason.JOIN_DELAY)
    match state.phase:
        case _Phase.IDLE:
            return _idle_action(state, now)
        case _Phase.TRAINED:
            return _trained_action(state, now)
        case _:
            return Wait(math.inf, WaitReason.BUSY)


def _reason_to_leave(state: PolicyState) -> str | None:
    if state.heard.ended is not None:
        return f"run ended: {state.heard.ended}"
    if state.updates == state.rules.max_updates:
        return "client.max_updates reached"
    if state.heard.unwanted is not None:
        return f"not wanted: {state.heard.unwanted}"
    return "stopped" if state.heard.stopping else None


def _idle_action(state: PolicyState, now: float) -> PolicyAction:
    if state.heard.newest is None:
        return Wait(math.inf, WaitReason.VERSION)
    if state.unsent:
        return _once_paced(state, SendUnsent(), state.sent_at, now)
    if state.in_flight and state.updates + 1 == state.rules.max_updates:
        return Wait(math.inf, WaitReason.LINK)  # it is the last
    if state.heard.paused:
        return Wait(math.inf, WaitReason.PAUSE)
    if now < state.heard.rests_until:
        return Wait(state.heard.rests_until, WaitReason.ROOM)
    if now < (until := expected_by(state)):
        return Wait(until, WaitReason.VERSION)
    return _once_paced(state, Train(state.heard.newest), state.begun_at, now)


def _trained_action(state: PolicyState, now: float) -> PolicyAction:
    if now < state.ready_at:
        return Wait(state.ready_at, WaitReason.SPEED)
    if state.in_flight:
        return Wait(math.inf, WaitReason.LINK)
    return _once_paced(state, Send(), state.sent_at, now) if state.looked else Look()


def _once_paced(state: PolicyState, action: PolicyAction, last: float, now: float) -> PolicyAction:
    """The action, or the wait until the pace allows it; `last` is when the client did this before."""
    pace = min(max(state.heard.pace_seconds, 0.0), LONGEST_PACE_SECONDS)
    return Wait(last + pace, WaitReason.PACE) if now < last + pace else action


def _after_sending(state: PolicyState) -> _Phase:
    """The phase once what was being sent has arrived or was refused: another where the client went on meanwhile."""
    return _Phase.IDLE if state.phase is _Phase.SENDING else state.phase


def _next_doublings(state: PolicyState) -> int:
    if state.base is None or (state.in_flight and not _has_newer(state)):
        return state.doublings
    return 0 if _has_newer(state) else min(state.doublings + 1, state.most_doublings)


def _has_newer(state: PolicyState) -> bool:
    newest = state.heard.newest
    return state.base is None or (newest is not None and newest > state.base)
