"""Who takes part in a demonstration."""

import pytest

from llmos_stream.config import Settings, load
from llmos_stream.demo import ClientMix, make_scenario
from llmos_stream.demo.scenario import Scenario
from llmos_stream.errors import ConfigError


def _names(scenario: Scenario) -> list[str | None]:
    return [own.client.id for own in scenario.clients]


def test_the_usual_cast() -> None:
    scenario = make_scenario(Settings(), ClientMix())
    assert _names(scenario) == [
        "client-0",
        "client-1",
        "client-2",
        "client-3",
        "client-4-leaving",
        "client-5-late",
        "client-6-slow",
        "client-7-slow",
    ]
    assert [own.client.shard for own in scenario.clients] == list(range(8))
    assert [own.client.speed for own in scenario.clients] == [1.0] * 6 + [0.1] * 2
    assert [own.client.join_delay_seconds > 0 for own in scenario.clients] == [False] * 5 + [True] + [False] * 2
    assert [own.client.max_updates is not None for own in scenario.clients] == [False] * 4 + [True] + [False] * 3


def test_every_role_splits_the_data_alike_and_the_rest_stays_as_set() -> None:
    settings = load({"client": {"speed": 0.5, "lr": 0.2, "shard": 7}, "codec": {"name": "int4"}})
    scenario = make_scenario(settings, ClientMix(3, slow=1, late=0, leaving=0))
    for own in (scenario.settings, *scenario.clients):
        assert own.task.shards == 3
        assert own.client.lr == 0.2
        assert own.codec.name == "int4"
        # What is handed to another process must be valid there.
        assert load(own.model_dump()).client.shard < 3
    assert [own.client.speed for own in scenario.clients] == [0.5, 0.5, pytest.approx(0.05)]


def test_all_may_be_slow_late_or_leaving() -> None:
    assert _names(make_scenario(Settings(), ClientMix(2, slow=2, late=0, leaving=0))) == [
        "client-0-slow",
        "client-1-slow",
    ]
    assert _names(make_scenario(Settings(), ClientMix(2, slow=0, late=1, leaving=1))) == [
        "client-0-leaving",
        "client-1-late",
    ]


@pytest.mark.parametrize(
    ("clients", "slow", "late", "leaving", "expected"),
    [
        (8, None, None, None, (2, 1, 1)),
        (5, None, None, None, (2, 1, 1)),
        (4, None, None, None, (2, 1, 0)),
        (3, None, None, None, (2, 0, 0)),
        (2, None, None, None, (1, 0, 0)),
        (1, None, None, None, (0, 0, 0)),
        (4, 4, None, None, (4, 0, 0)),
        (4, 0, None, None, (0, 1, 1)),
        (4, None, None, 2, (1, 0, 2)),
        (20, 5, None, 0, (5, 1, 0)),
    ],
)
def test_few_clients_have_fewer_traits(
    clients: int, slow: int | None, late: int | None, leaving: int | None, expected: tuple[int, int, int]
) -> None:
    mix = ClientMix.fitting(clients, slow, late, leaving)
    assert (mix.clients, (mix.slow, mix.late, mix.leaving)) == (clients, expected)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 0, 0, 0), "--clients: 0 is not at least 1"),
        ((-3, 0, 0, 0), "--clients: -3 is not at least 1"),
        ((3, 2, 1, 1), "together not more than --clients (3)"),
        ((8, -1, 1, 1), "none below 0"),
        ((8, 1, -1, 1), "none below 0"),
        ((8, 1, 1, -1), "none below 0"),
    ],
)
def test_a_cast_that_there_cannot_be(numbers: tuple[int, int, int, int], said: str) -> None:
    for make in (ClientMix, ClientMix.fitting):
        with pytest.raises(ConfigError) as caught:
            make(*numbers)
        assert said in str(caught.value)
