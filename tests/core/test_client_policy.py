"""What a client does next: its promises as properties of any life, and one life told second by second."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import ClientSettings
from llmos_stream.core import client_policy as policy
from llmos_stream.core.client_policy import Heard, PolicyAction, PolicyEvent, PolicyState, WaitReason


@dataclass(frozen=True)
class Turn:
    """What the policy was asked, and what it answered."""

    now: float
    event: PolicyEvent
    before: PolicyState
    action: PolicyAction


def _heard(turn: Turn) -> Heard:
    return turn.event if isinstance(turn.event, Heard) else turn.before.heard


def _pace_known(turn: Turn) -> float:
    return min(_heard(turn).pace_seconds, policy.LONGEST_PACE_SECONDS)


class Caller:
    """Performs what the policy asks for, as a live client does, in a world that changes while it waits and works."""

    def __init__(self, rules: ClientSettings, most_doublings: int = policy.MOST_DOUBLINGS) -> None:
        self.now = 100.0
        self.world = Heard()
        self.state = policy.join(rules, self.now, most_doublings)
        self.turns: list[Turn] = []
        self._event: PolicyEvent = policy.Resumed()

    def turn(self, seconds: float = 0.0, world: Heard | None = None, *, trouble: bool = False) -> PolicyAction:
        """Ask once, then let the action take `seconds` (a wait: at most that long) and the world become `world`.

        In `trouble` the action fails.
        """
        event, before = self._event, self.state
        self.state, action = policy.next_action(before, event, self.now)
        self.turns.append(Turn(self.now, event, before, action))
        until = action.until if isinstance(action, policy.Wait) else math.inf
        self.now = min(self.now + seconds, until)
        self.world = world or self.world
        self._event = policy.Resumed() if trouble else self._came_of(action, seconds)
        return action

    def _came_of(self, action: PolicyAction, seconds: float) -> PolicyEvent:
        match action:
            case policy.Train():
                assert self.world.newest is not None
                return policy.TrainingDone(self.world.newest, seconds)
            case policy.Send():
                return policy.UpdateSent()
            case policy.SendUnsent():
                return policy.UnsentSettled(self.world.ended is None)
            case _:
                return self.world

    def settle(self, most: int = 30) -> list[PolicyAction]:
        """In a world that stays as it is: the actions until an update is sent or the client leaves, waits to their end.

        Fails when that takes more than `most` turns, or a wait has no end.
        """
        done: list[PolicyAction] = []
        for _ in range(most):
            done.append(action := self.turn(1e9))
            if isinstance(action, policy.Send | policy.Leave):
                return done
            endless = isinstance(action, policy.Wait) and math.isinf(action.until)
            assert not (endless and self.state.heard == self.world), done
        raise AssertionError(f"neither sent nor left: {done}")


RULES = st.builds(
    ClientSettings,
    wait_seconds=st.sampled_from([0.0, 0.5, 5.0]),
    max_updates=st.none() | st.integers(1, 5),
    speed=st.sampled_from([1.0, 0.1]),
    min_train_seconds=st.sampled_from([0.0, 2.0]),
    join_delay_seconds=st.sampled_from([0.0, 7.0]),
)
SECONDS = st.sampled_from([0.0, 0.001, 0.3, 1.0, 4.0, 20.0, 1000.0])
CHANGES = st.sampled_from(["nothing", "version", "pace", "faster", "mad pace", "pause", "go on", "trouble"])
LAST = st.sampled_from([None, "end", "stop"])


def _changed(world: Heard, change: str) -> Heard:
    newest = world.newest
    match change:
        case "version":
            return replace(world, newest=0 if newest is None else newest + 1)
        case "pace" | "faster" | "mad pace":
            return replace(world, pace_seconds={"pace": 10.0, "faster": 0.5, "mad pace": 1e30}[change])
        case "pause" | "go on":
            return replace(world, paused=change == "pause")
        case "end":
            return replace(world, ended="max_versions")
        case "stop":
            return replace(world, stopping=True)
        case _:
            return world


def _life(rules: ClientSettings, steps: Sequence[tuple[float, str]], last: str | None = None) -> Caller:
    caller = Caller(rules, most_doublings=len(steps) % (policy.MOST_DOUBLINGS + 1))
    for seconds, change in steps:
        caller.turn(seconds, _changed(caller.world, change), trouble=change == "trouble")
    if last is not None:
        caller.world = _changed(caller.world, last)
    return caller


STEPS = st.lists(st.tuples(SECONDS, CHANGES), max_size=60)


@given(RULES, STEPS)
def test_it_never_sends_before_the_pace_allows(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    turns = _life(rules, steps).turns
    sent = {policy.UpdateSent(), policy.UnsentSettled(True)}
    sending = [turn for turn, following in pairwise(turns) if following.event in sent]
    for earlier, later in pairwise(sending):
        assert later.now - earlier.now >= _pace_known(later)


@given(RULES, STEPS)
def test_it_begins_no_training_before_the_pace_allows(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    last: Turn | None = None
    for turn in _life(rules, steps).turns:
        if isinstance(turn.event, policy.Resumed):
            last = None  # nothing came of that one
        if isinstance(turn.action, policy.Train):
            assert last is None or turn.now - last.now >= _pace_known(turn)
            last = turn


@given(RULES, STEPS)
def test_it_looks_between_training_and_sending(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    looked = False
    for turn in _life(rules, steps).turns:
        looked = (looked and not isinstance(turn.action, policy.Train)) or isinstance(turn.action, policy.Look)
        if isinstance(turn.action, policy.Send):
            assert looked
            assert isinstance(turn.event, Heard)  # nothing lies between what was heard last and the sending


@given(RULES, STEPS)
def test_nothing_is_begun_in_a_pause(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    for turn in _life(rules, steps).turns:
        if isinstance(turn.action, policy.Train):
            assert not _heard(turn).paused


@given(st.sampled_from([0.5, 5.0]), st.integers(0, 6), st.integers(1, 9))
def test_the_wait_for_a_version_doubles_up_to_its_bound_and_a_new_one_resets_it(
    seconds: float, most: int, repeats: int
) -> None:
    caller = Caller(ClientSettings(wait_seconds=seconds), most)
    caller.turn(world=Heard(newest=3))
    caller.turn()  # as yet it knows of no version
    waits = []
    for newest in [3] * repeats + [4] * repeats:
        caller.settle()
        acknowledged = caller.now
        if newest != caller.world.newest:
            caller.turn(0.0, Heard(newest=newest))
            caller.settle()
            acknowledged = caller.now
        caller.turn(1e9)
        caller.turn(1e9)
        assert caller.turns[-1].action == policy.Train(newest)
        waits.append(caller.turns[-1].now - acknowledged)
    assert waits == [pytest.approx(seconds * 2 ** min(number, most)) for number in range(repeats)] * 2


@given(RULES, STEPS)
def test_a_newer_version_is_never_waited_for(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    for turn in _life(rules, steps).turns:
        if isinstance(turn.action, policy.Wait) and turn.action.reason is WaitReason.VERSION:
            assert _heard(turn).newest in {None, turn.before.base}


@given(RULES, STEPS, LAST)
def test_it_leaves_for_a_reason_and_in_time(
    rules: ClientSettings, steps: list[tuple[float, str]], last: str | None
) -> None:
    caller = _life(rules, steps, last)
    sent = 0
    for turn in caller.turns:
        sent += turn.event == policy.UpdateSent() or turn.event == policy.UnsentSettled(True)
        if isinstance(turn.action, policy.Leave):
            assert (turn.action.reason, sent) == ("client.max_updates reached", rules.max_updates)
        elif sent == rules.max_updates:
            pytest.fail(f"{turn.action} after the last update")
    if last is not None:
        # What is under way comes to its end first; then there is nothing more to do.
        actions = [caller.turn(1.0) for _ in range(5)]
        assert isinstance(actions[-1], policy.Leave)
        expected = {"end": "run ended: max_versions", "stop": "stopped"}[last]
        assert actions[-1].reason in {expected, "client.max_updates reached"}
        assert not any(isinstance(action, policy.Train) for action in actions[2:])


@given(RULES, STEPS)
def test_there_is_always_progress(rules: ClientSettings, steps: list[tuple[float, str]]) -> None:
    """Whatever came before: once there is a version and no pause, an update is sent, unless all of them were."""
    caller = _life(rules, steps)
    for turn in caller.turns:
        if isinstance(turn.action, policy.Wait):
            assert turn.action.until > turn.now
            heard = _heard(turn)
            assert math.isfinite(turn.action.until) == (
                turn.action.reason is not WaitReason.PAUSE and heard.newest is not None
            ) or turn.action.reason in {WaitReason.JOIN_DELAY, WaitReason.BUSY}
    caller.world = replace(caller.world, newest=caller.world.newest or 0, paused=False)
    last = caller.settle()[-1]
    assert isinstance(last, policy.Send) or caller.state.updates == rules.max_updates


def test_one_life_second_by_second() -> None:
    """As clients have always behaved; `tests/roles/test_client_life.py` has a life like it on a broker."""
    settings = ClientSettings(wait_seconds=4.0, min_train_seconds=1.0, speed=0.5, join_delay_seconds=3.0, max_updates=4)
    zero, one, busy = Heard(newest=0), Heard(newest=1), Heard(newest=2, pace_seconds=10.0)
    wait, reason = policy.Wait, WaitReason
    life: list[tuple[float, PolicyEvent, PolicyAction]] = [
        (0.0, Heard(), wait(3.0, reason.JOIN_DELAY)),
        (3.0, policy.Resumed(), wait(math.inf, reason.VERSION)),
        (10.0, zero, policy.SendUnsent()),
        (10.0, policy.UnsentSettled(False), policy.Train(0)),
        (10.5, policy.TrainingDone(0, 0.5), wait(12.0, reason.SPEED)),  # twice as long as a second, the least
        (12.0, zero, policy.Look()),
        (12.0, zero, policy.Send()),
        (12.5, policy.UpdateSent(), wait(16.5, reason.VERSION)),
        (16.5, zero, policy.Train(0)),  # the same again: nobody folds
        (18.5, policy.TrainingDone(0, 1.0), wait(19.5, reason.SPEED)),
        (19.5, zero, policy.Look()),
        (19.5, zero, policy.Send()),
        (20.0, policy.UpdateSent(), wait(28.0, reason.VERSION)),  # twice as long
        (23.0, one, policy.Train(1)),
        (24.0, policy.TrainingDone(1, 1.0), wait(25.0, reason.SPEED)),
        (25.0, busy, policy.Look()),  # it has heard of the pace while it trained
        (25.0, busy, wait(29.5, reason.PACE)),
        (29.5, busy, policy.Send()),
        (30.0, policy.UpdateSent(), wait(33.0, reason.PACE)),  # there is a newer version, and it began last at 23
        (31.0, replace(busy, paused=True), wait(math.inf, reason.PAUSE)),
        (99.0, replace(busy, paused=True), wait(math.inf, reason.PAUSE)),
        (150.0, busy, policy.Train(2)),
        (151.0, policy.TrainingDone(2, 1.0), wait(152.0, reason.SPEED)),
        (152.0, replace(busy, paused=True), policy.Look()),  # what was trained before the pause is sent all the same
        (152.0, replace(busy, paused=True), policy.Send()),
        (152.5, policy.UpdateSent(), policy.Leave("client.max_updates reached")),
        (152.5, busy, policy.Leave("client.max_updates reached")),
    ]
    state = policy.join(settings, 0.0)
    for now, event, expected in life:
        state, action = policy.next_action(state, event, now)
        assert (now, action) == (now, expected)


def test_an_update_of_an_earlier_process_goes_first_and_its_end_gives_it_up() -> None:
    caller = Caller(ClientSettings(wait_seconds=1.0))
    caller.turn(world=Heard(ended="target"))
    assert caller.turn() == policy.SendUnsent()
    assert caller.turn() == policy.Leave("run ended: target")
    assert caller.state.updates == 0


def test_after_a_lost_connection_what_may_have_been_sent_counts_for_the_pace() -> None:
    busy = Heard(newest=0, pace_seconds=10.0)
    state = policy.join(ClientSettings(wait_seconds=5.0), 0.0)
    life: list[tuple[float, PolicyEvent, PolicyAction]] = [
        (0.0, policy.Resumed(), policy.Wait(math.inf, WaitReason.VERSION)),
        (0.0, busy, policy.SendUnsent()),
        (0.0, policy.UnsentSettled(False), policy.Train(0)),
        (1.0, policy.TrainingDone(0, 1.0), policy.Look()),
        (1.0, busy, policy.Send()),
        (2.0, policy.Resumed(), policy.Wait(11.0, WaitReason.PACE)),
        (11.0, busy, policy.SendUnsent()),
        (12.0, policy.UnsentSettled(True), policy.Train(0)),  # nothing is known to have come of the first
        (13.0, policy.TrainingDone(0, 1.0), policy.Look()),
        (13.0, busy, policy.Wait(21.0, WaitReason.PACE)),
    ]
    for now, event, expected in life:
        state, action = policy.next_action(state, event, now)
        assert (now, action) == (now, expected)


def test_a_refused_update_is_followed_by_one_on_the_newest_version() -> None:
    state = policy.join(ClientSettings(wait_seconds=5.0), 0.0)
    for event in (policy.Resumed(), Heard(newest=0)):
        state = policy.observe(state, event, 0.0)
    state, action = policy.next_action(state, policy.UnsentSettled(False), 0.0)
    assert action == policy.Train(0)
    state, _ = policy.next_action(state, policy.TrainingDone(0, 30.0), 30.0)
    state, action = policy.next_action(state, Heard(newest=9, pace_seconds=60.0), 30.0)
    assert action == policy.Send()  # the first of this process
    state = policy.observe(state, policy.UpdateRefused(), 30.0)
    state, action = policy.decide(state, 30.0)
    assert action == policy.Train(9)
    assert state.updates == 0


def test_it_trains_on_while_an_update_is_in_flight() -> None:
    zero, one, wait, reason = Heard(newest=0), Heard(newest=1), policy.Wait, WaitReason
    life: list[tuple[float, PolicyEvent, PolicyAction]] = [
        (0.0, policy.Resumed(), wait(math.inf, reason.VERSION)),
        (0.0, zero, policy.SendUnsent()),
        (0.0, policy.UnsentSettled(False), policy.Train(0)),
        (1.0, policy.TrainingDone(0, 1.0), policy.Look()),
        (1.0, zero, policy.Send()),
        (1.0, policy.UpdateKept(), policy.Train(0)),  # no version can have it yet
        (2.0, policy.TrainingDone(0, 1.0), wait(math.inf, reason.LINK)),  # one at most
        (9.0, policy.UpdateSent(), policy.Look()),
        (9.0, one, policy.Send()),
        (9.0, policy.UpdateKept(), policy.Train(1)),
        (9.5, policy.UpdateRefused(), wait(math.inf, reason.BUSY)),  # the training goes on
        (10.0, policy.TrainingDone(1, 1.0), policy.Look()),
        (10.0, one, policy.Send()),
        (10.0, policy.UpdateSent(), wait(15.0, reason.VERSION)),  # here the caller has waited for it: the first repeat
        (15.0, one, policy.Train(1)),
        (16.0, policy.TrainingDone(1, 1.0), policy.Look()),
        (16.0, one, policy.Send()),
        (16.0, policy.UpdateKept(), wait(math.inf, reason.LINK)),  # it is the last
        (17.0, policy.UpdateSent(), policy.Leave("client.max_updates reached")),
    ]
    state = policy.join(ClientSettings(wait_seconds=5.0, overlap=True, max_updates=3), 0.0)
    for now, event, expected in life:
        state, action = policy.next_action(state, event, now)
        assert (now, action) == (now, expected)


@pytest.mark.parametrize("last", [Heard(newest=0, stopping=True), Heard(newest=0, ended="target")])
def test_it_leaves_once_what_is_in_flight_has_arrived_and_sends_it_again_over_another_connection(last: Heard) -> None:
    state = policy.join(ClientSettings(overlap=True), 0.0)
    for event in (policy.Resumed(), Heard(newest=0), policy.UnsentSettled(False), policy.TrainingDone(0, 1.0)):
        state, _ = policy.next_action(state, event, 0.0)
    state, _ = policy.next_action(state, Heard(newest=0), 1.0)
    state, action = policy.next_action(state, policy.UpdateKept(), 1.0)
    assert action == policy.Train(0)
    lost, action = policy.next_action(state, policy.Resumed(), 2.0)
    assert action == policy.SendUnsent()
    assert lost.in_flight is False
    state, action = policy.next_action(state, last, 2.0)
    assert action == policy.Wait(math.inf, WaitReason.LINK)
    _, action = policy.next_action(state, policy.UpdateSent(), 3.0)
    assert isinstance(action, policy.Leave)


@pytest.mark.parametrize(
    ("base", "newest", "maximum", "expected"),
    [(0, 3, 3, False), (0, 4, 3, True), (5, 4, 0, False), (0, None, 0, False), (0, 99, None, False)],
)
def test_too_stale(base: int, newest: int | None, maximum: int | None, expected: bool) -> None:
    assert policy.is_too_stale(base, newest, maximum) is expected
