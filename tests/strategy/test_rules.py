"""Staleness functions, server optimisers and stop rules of one's own, and the life of a rule that holds updates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import AggregationSettings, StalenessSettings, StopSettings
from llmos_stream.config.plugins import SERVER_OPTIMIZERS, STALENESS, STOP_RULES, STRATEGIES, Kind
from llmos_stream.core import NewVersion, Rule, make_stop_rule, staleness, start, step, stopping
from llmos_stream.core.rule import OPTIMIZERS_BUILT_IN, STRATEGIES_BUILT_IN
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.strategy import Strategy, Stretch
from tests.core.builders import LAYOUT
from tests.core.builders import update as made
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.strategy.packages import installed

SOURCE = '''
from pydantic import BaseModel
from llmos_stream.strategy import ServerOptimizer, Stop, StopRule

class Half(BaseModel):
    every: int = 1

def halving(options, settings):
    return lambda tau: 0.5 ** (tau // options.every)

halving.Options = Half

class Averaged(ServerOptimizer):
    """Half of the step now, and half of the step before."""
    def __init__(self, options, settings, numel, device):
        super().__init__(options, settings, numel, device)
        self.tensors["before"] = self.zeros()

    def move(self, x, d, moments, a, b):
        (before,) = moments
        a.copy_(d)
        d.add_(before).mul_(0.5 * self.lr).add_(x)
        before.copy_(a)

class Third(StopRule):
    def __init__(self, options, settings):
        super().__init__(settings)

    def observe_version(self, number):
        return Stop("third", "three are enough") if number == 3 else None
'''
ENTRIES = """
[llmos_stream.staleness]
halving = ours:halving
[llmos_stream.server_optimizers]
averaged = ours:Averaged
[llmos_stream.stop_rules]
third = ours:Third
"""


async def test_all_kinds_run_together_are_recorded_and_replayed(federation: str, tmp_path: Path) -> None:
    broker = MemoryBroker()
    settings = settings_for(
        federation,
        staleness={"kind": "halving", "options": {"every": 2}},
        server_optimizer={"name": "averaged", "lr": 0.5},
        stop={"rule": "third"},
    )
    with installed(tmp_path, "ours", SOURCE, ENTRIES):
        async with aggregator(broker, settings) as running:
            for number in range(3):
                await running.send(update(delta_of(1.0), sequence=number))
            version = await running.version(3)
            (finished,) = await running.events("run_finished", 1)
        assert finished.data["reason"] == "third"
        # s(tau): 1, 1, 0.5; a step is half of its own pseudo-gradient and half of the one before, at a rate of 0.5
        steps = [0.5 * 0.5 * (now + before) for now, before in ((1.0, 0.0), (1.0, 1.0), (0.5, 1.0))]
        assert torch.allclose(version.weights, delta_of(sum(steps)))
        assert version.head.rule["packages"] == {"staleness": ["ours", "1.2"], "server_optimizer": ["ours", "1.2"]}
        async with replay_log(broker, settings_for(federation)) as log:
            assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 3
            assert outcomes(await verdicts_of(log, range(3, 4))) == [
                RebuildOutcome.MATCH
            ]  # by moments from the snapshot
    async with replay_log(broker, settings_for(federation)) as log:
        detail = (await verdicts_of(log))[1].detail
    assert detail.endswith("staleness function halving of package ours 1.2: pip install ours==1.2")


@pytest.mark.parametrize("strategy", ["median", "krum"])
async def test_what_was_held_when_it_was_killed_is_read_again(federation: str, strategy: str) -> None:
    broker = MemoryBroker()
    settings = settings_for(federation, aggregation={"strategy": strategy, "buffer_size": 3})
    async with aggregator(broker, settings) as running:
        await running.version(0)
        for number in range(2):
            await running.send(update(delta_of(1.0 + number), client_id=f"c{number}", sequence=number))
        await running.kill()
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(9.0), client_id="c2", sequence=2))
        version = await running.version(1)
    assert [item.sequence for item in version.head.manifest] == [0, 1, 2]
    assert torch.equal(version.weights, delta_of(2.0 if strategy == "median" else 1.0))


@pytest.mark.parametrize("asked", [None, False])
async def test_a_client_has_one_place_in_a_version_unless_the_settings_say_otherwise(
    broker: Broker, federation: str, asked: bool | None
) -> None:
    aggregation = {"strategy": "median", "buffer_size": 2, "one_of_a_client": asked}
    settings = settings_for(federation, aggregation=aggregation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        for sequence in range(2):
            await running.send(update(delta_of(4.0), client_id="a", sequence=sequence))
        await running.send(update(delta_of(2.0), client_id="b"))
        version = await running.version(1)
    taken = [(item.client_id, item.sequence) for item in version.head.manifest]
    assert taken == ([("a", 0), ("b", 0)] if asked is None else [("a", 0), ("a", 1)])
    assert torch.equal(version.weights, delta_of(3.0 if asked is None else 4.0))
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL, RebuildOutcome.MATCH]


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (STRATEGIES, STRATEGIES_BUILT_IN),
        (STALENESS, staleness.BUILT_IN),
        (SERVER_OPTIMIZERS, OPTIMIZERS_BUILT_IN),
        (STOP_RULES, stopping.BUILT_IN),
    ],
)
def test_the_settings_name_what_is_built_in(kind: Kind, built_in: dict[str, object]) -> None:
    assert set(kind.built_in) == built_in.keys()


class Largest(Strategy):
    """Coordinate by coordinate, the largest."""

    @property
    def holds(self) -> int:
        return 2

    def divisor(self, manifest: object) -> None:
        return None

    def combine(self, stretch: Stretch) -> Tensor:
        return stretch.rows.max(dim=0).values


def test_a_rule_may_hold_fewer_than_the_buffer() -> None:
    rule = Rule(AggregationSettings(strategy="tests.strategy.test_rules:Largest", buffer_size=9))
    assert rule.capacity == 2
    state = start(torch.zeros(2), LAYOUT, rule=rule)
    state, _ = step(state, made([1.0, -1.0], 0), 0.0)
    state, effects = step(state, made([-1.0, 3.0], 1), 0.0)
    assert isinstance(effects[-1], NewVersion)
    assert effects[-1].weights.tolist() == [1.0, 3.0]
    assert "packages" not in rule.record()


def double(options: object, settings: object) -> object:
    return lambda tau: 2.0


def test_a_staleness_function_that_leaves_0_to_1_is_said() -> None:
    rule = Rule(staleness=StalenessSettings(kind="tests.strategy.test_rules:double"))
    with pytest.raises(ConfigError, match=r"staleness\.kind: s\(0\) is 2\.0, which is not from 0 to 1"):
        step(start(torch.zeros(2), LAYOUT, rule=rule), made([1.0, 1.0], 0), 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module_here:Rule",
            r"there is no module no_such_module_here \(looked in the current folder too\); is its folder on PYTHONPATH",
        ),
        ("tests.strategy.test_rules:Nothing", "has no Nothing"),
        ("tests.strategy.test_rules:SOURCE", "SOURCE is a str, not a callable"),
        ("tests.strategy.test_rules:double", "makes a function, which is no Strategy"),
    ],
)
def test_a_path_that_names_no_strategy_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"aggregation.strategy: .*{message}"):
        Rule(AggregationSettings(strategy=name)).strategy()


def test_stop_rules_are_named_and_take_options_as_the_others() -> None:
    with pytest.raises(ConfigError, match="no stop rule 'standart' is installed; did you mean standard"):
        make_stop_rule(StopSettings(rule="standart"))
    with pytest.raises(ConfigError, match=r"stop\.options: x: there is no such setting"):
        make_stop_rule(StopSettings(options={"x": 1}))


@pytest.mark.parametrize("packages", [3, {"aggregation": 3}, {"aggregation": ["a"]}, {"aggregation": ["a", "1", "2"]}])
def test_a_record_of_packages_that_is_not_understood_is_refused(packages: object) -> None:
    with pytest.raises(Rejected) as caught:
        Rule.of(Rule().record() | {"packages": packages})
    assert caught.value.reason is Reason.UNSUPPORTED


def test_a_record_names_a_package_that_is_not_the_one_here() -> None:
    recorded = Rule.of(Rule().record() | {"packages": {"aggregation": ["theirs", "2.0"]}})
    with pytest.raises(Rejected, match=r"strategy fedbuff of package theirs 2\.0: the one here is of no package"):
        recorded.strategy()
