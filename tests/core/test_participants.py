"""Of how many updates a version is made where no setting says so: of one from each client that is at work."""

import heapq
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from llmos_stream.config import AggregationSettings
from llmos_stream.core import Effect, Expected, NewVersion, Participants, State, next_deadline, step, tick
from llmos_stream.core.participants import MOST
from tests.core.builders import start, update

_ALWAYS = 1e9


@dataclass
class _Run:
    """Clients that train without a pause in virtual time: each waits for a version newer than that of its last update.

    seconds: how long each trains. until: when it leaves.
    """

    seconds: Mapping[str, float]
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    until: Mapping[str, float] = field(default_factory=dict)
    made: list[tuple[float, NewVersion]] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.state: State = start(torch.zeros(1), aggregation=self.aggregation)
        self.participants = Participants()

    def _step(self, name: str, sequence: int, base: int) -> tuple[Effect, ...]:
        expected, version = self.participants.expected(name, base, self.now), self.state.version
        self.state, effects = step(self.state, update([1.0], sequence, base, client=name), self.now, expected)
        self.participants.folded(name, base, version, self.now)
        return effects

    def play(self, done: Callable[["_Run"], bool]) -> "_Run":
        ends = [(seconds, name, 0) for name, seconds in self.seconds.items()]
        heapq.heapify(ends)
        waiting: dict[str, int] = {}
        sequences = dict.fromkeys(self.seconds, 0)
        while not done(self):
            deadline = next_deadline(self.state)
            if deadline is not None and (not ends or deadline <= ends[0][0]):
                self.now = deadline
                self.state, effects = tick(self.state, deadline)
            elif ends:
                self.now, name, base = heapq.heappop(ends)
                if self.now > self.until.get(name, _ALWAYS):
                    continue
                sequences[name] += 1
                effects = self._step(name, sequences[name], base)
                waiting[name] = base
            else:
                raise AssertionError("everybody waits for ever")
            for effect in effects:
                if isinstance(effect, NewVersion):
                    self.made.append((self.now, effect))
                    self.participants.made(effect.number, self.now)
            for name in [name for name, base in waiting.items() if base < self.state.version]:
                del waiting[name]
                heapq.heappush(ends, (self.now + self.seconds[name], name, self.state.version))
        return self

    @property
    def sizes(self) -> Sequence[int | None]:
        return [version.buffer_size for _, version in self.made]


def _after(versions: int) -> Callable[[_Run], bool]:
    return lambda run: len(run.made) >= versions


def _seconds_for(versions: int, seconds: Mapping[str, float], buffer_size: int | None) -> float:
    return _Run(seconds, AggregationSettings(buffer_size=buffer_size)).play(_after(versions)).made[-1][0]


@pytest.mark.parametrize("seconds", [0.01, 1.0, 60.0])
def test_one_client_alone_makes_a_version_of_each_update(seconds: float) -> None:
    run = _Run({"a": seconds}).play(_after(6))
    assert run.sizes == [1] * 6
    assert run.made[-1][0] == pytest.approx(6 * seconds)


@pytest.mark.parametrize("slower", [1.0, 1.3])
@pytest.mark.parametrize("clients", [2, 3, 4])
def test_clients_of_about_one_speed_make_most_versions_of_one_update_each(clients: int, slower: float) -> None:
    seconds = {f"client-{number}": slower**number for number in range(clients)}
    run = _Run(seconds).play(_after(20))
    assert statistics.mode(run.sizes[-12:]) == clients
    assert statistics.mode(len(version.manifest) for _, version in run.made[-12:]) == clients


@pytest.mark.parametrize("clients", [5, 20])
def test_more_clients_fill_a_buffer_of_four(clients: int) -> None:
    seconds = {f"client-{number}": 1.0 + 0.37 * number for number in range(clients)}
    assert _Run(seconds).play(_after(30)).sizes[-20:] == [MOST] * 20


def test_two_clients_are_as_quick_as_with_the_buffer_that_fits_them() -> None:
    """A buffer of 4 takes them to the deadline, or to what they train again in vain."""
    seconds = {"a": 1.0, "b": 1.1}
    best = _seconds_for(6, seconds, 2)
    assert _seconds_for(6, seconds, None) <= 1.2 * best
    assert _seconds_for(6, seconds, 4) > 3 * best


def test_one_client_is_as_quick_as_with_the_buffer_that_fits_it() -> None:
    assert _seconds_for(6, {"a": 1.0}, None) == _seconds_for(6, {"a": 1.0}, 1)


def test_a_quick_client_does_not_wait_for_a_slow_one() -> None:
    run = _Run({"quick": 1.0, "slow": 30.0}).play(lambda run: run.now >= 300)
    by_quick = [version for _, version in run.made if any(item.client_id == "quick" for item in version.manifest)]
    by_slow = [version for _, version in run.made if any(item.client_id == "slow" for item in version.manifest)]
    assert len(by_quick) > 0.9 * 300
    assert len(by_slow) >= 9


@pytest.mark.parametrize(("clients", "left"), [(2, 1), (4, 1), (4, 2)])
def test_one_that_left_is_waited_for_once(clients: int, left: int) -> None:
    names = [f"client-{number}" for number in range(clients)]
    run = _Run(dict.fromkeys(names, 2.0), until=dict.fromkeys(names[left:], 20.0)).play(_after(40))
    after = [at for at, _ in run.made if at > 22.0]
    gaps = [later - earlier for earlier, later in itertools.pairwise(after)]
    assert sum(gap > 2.5 for gap in gaps) <= 1
    assert run.sizes[-1] == left


def test_the_deadline_of_the_settings_holds() -> None:
    run = _Run({"a": 100.0, "b": 130.0}, AggregationSettings(deadline_seconds=5.0))
    run.play(lambda run: len(run.made) > 6 and run.state.pipeline.pending() > 0)
    assert next_deadline(run.state) == run.now + 5.0


def test_a_set_buffer_does_not_adapt() -> None:
    run = _Run({"a": 1.0, "b": 1.0}, AggregationSettings(buffer_size=2)).play(_after(3))
    assert run.sizes == [None] * 3


@pytest.mark.parametrize("strategy", ["median", "krum", "norm_bound"])
def test_rules_against_hostile_clients_keep_to_four(strategy: str) -> None:
    state = start(torch.zeros(1), aggregation=AggregationSettings(strategy=strategy))
    for number in range(3):
        state, effects = step(state, update([1.0], client=f"client-{number}"), 0.0)
        assert len(effects) == 1
    state, effects = step(state, update([1.0], client="client-3"), 0.0)
    assert isinstance(effects[-1], NewVersion)
    assert effects[-1].buffer_size is None


def test_what_a_source_says_of_a_version_stands() -> None:
    state = start(torch.zeros(1))
    state, effects = step(state, update([1.0], 0), 0.0, Expected(2))
    assert len(effects) == 1
    state, (_, version) = step(state, update([1.0], 1), 1.0, Expected(1))
    assert isinstance(version, NewVersion)
    assert version.buffer_size == 2


def test_the_next_aggregator_goes_on_with_the_clients_of_the_newest_version() -> None:
    participants = Participants()
    participants.resume(["a", "b"], 7, 100.0)
    assert participants.count(100.0) == 2
    assert participants.expected("a", 7, 101.0).updates == 2
    assert participants.expected("c", 7, 101.0).updates == 3
    assert participants.expected("a", 7, 1000.0).updates == 1


def test_a_pause_makes_nobody_late() -> None:
    participants = Participants()
    for number in range(3):
        for client in "ab":
            participants.folded(client, number, number, float(number))
        participants.made(number + 1, float(number))
    participants.rested(3600.0)
    assert participants.expected("a", 3, 3603.0).updates == 2
    assert participants.expected("a", 3, 7200.0).updates == 1


def test_those_long_silent_are_not_counted() -> None:
    participants = Participants()
    for number in range(50):
        participants.folded("here", number, number, float(number))
        participants.made(number + 1, float(number))
        if number < 3:
            participants.folded("gone", number, number, float(number))
    assert participants.count(49.0) == 1
