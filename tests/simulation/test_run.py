from dataclasses import replace
from typing import Any

import pytest

from llmos_stream.errors import ConfigError
from llmos_stream.simulation import Result, simulate
from tests.simulation.aids import devices


def _run(seed: int = 0, **sections: Any) -> Result:
    return replace(simulate(devices(**sections).arms[0], seed), wall_seconds=0.0)


def test_a_run_follows_from_settings_and_seed() -> None:
    first = _run()
    assert _run() == first
    assert _run(seed=1).digest != first.digest


def test_a_federation_of_devices_learns() -> None:
    found = _run()
    assert found.final is not None
    assert found.final > 0.8
    assert found.versions == 12
    assert found.folded == found.updates == 60
    assert found.bytes_up > 0
    assert found.bytes_down > 0
    assert 0 < found.staleness["mean"] < 10
    assert 0.5 < found.sites["worst"] <= found.sites["mean"] <= 1


def test_time_is_that_of_the_clients() -> None:
    """Ten clients at once, each of whose trainings takes two seconds, bring sixty updates in twelve."""
    found = _run(speed={"sigma": 0.0, "seconds": 2.0, "jitter": 0.0})
    assert found.seconds == pytest.approx(12.0)


def test_links_cost_what_bytes_and_latency_say() -> None:
    fast, slow = (_run(speed={"sigma": 0.0, "jitter": 0.0}, links=links) for links in ({}, {"latency_seconds": 1.0}))
    # One down and one up to each second of training.
    assert slow.seconds == pytest.approx(3 * fast.seconds)
    thin = _run(speed={"sigma": 0.0, "jitter": 0.0}, links={"upload_mbit": 0.001})
    assert thin.seconds > fast.seconds + 8 * thin.bytes_up / thin.updates / 1000


def test_those_who_are_always_busy_wait_for_versions_as_the_policy_says() -> None:
    """Of five sites alike, each waits for the version that its update becomes part of."""
    found = _run(population={"clients": 5, "concurrency": None}, speed={"sigma": 0.0, "jitter": 0.0})
    assert found.staleness["max"] == 0
    assert found.seconds == pytest.approx(12.0)
    patient = _run(
        population={"clients": 4, "concurrency": None},
        speed={"sigma": 0.0, "jitter": 0.0},
        client={"batch_size": 16, "lr": 0.1, "wait_seconds": 3.0},
        aggregation={"buffer_size": 5, "deadline_seconds": 1000.0},
        simulation={"updates": 8},
    )
    # Four updates make no version of five: each waits three seconds before it trains again.
    assert patient.versions == 1
    assert patient.seconds == pytest.approx(5.0)


def test_a_round_is_of_clients_that_are_chosen_together() -> None:
    """Half of the clients need five seconds: so does each round that has one of them."""
    sections: dict[str, Any] = {
        "aggregation": {"strategy": "fedavg", "buffer_size": 10},
        "client": {"batch_size": 16, "lr": 0.1, "wait_seconds": 1e6},
        "speed": {"kind": "classes", "classes": [[0.5, 1.0], [0.5, 5.0]], "jitter": 0.0},
    }
    rounds = _run(population={"together": True}, **sections)
    assert (rounds.versions, rounds.folded, rounds.staleness["max"]) == (6, 60, 0)
    assert not rounds.refused
    assert rounds.seconds == pytest.approx(30.0)
    assert _run(**sections).refused, "who leaves makes room for another at once, and the slow ones come too late"
    with pytest.raises(ConfigError, match=r"together: say of how many \(concurrency\)"):
        devices(population={"concurrency": None, "together": True})


def test_a_deadline_makes_versions_of_what_is_there() -> None:
    found = _run(
        population={"clients": 2, "concurrency": None},
        speed={"sigma": 0.0, "jitter": 0.0},
        aggregation={"buffer_size": 5, "deadline_seconds": 0.5},
    )
    assert found.versions == pytest.approx(found.updates / 2, abs=1)


def test_updates_that_are_never_sent_and_clients_that_are_not_there() -> None:
    assert _run(availability={"dropout": 0.5}).seconds > 1.3 * _run().seconds
    joined = _run(availability={"join_seconds": 100.0}, speed={"sigma": 0.0})
    assert joined.seconds > 5.0
    left = _run(availability={"stay_seconds": 0.5}, simulation={"updates": 5000})
    assert left.ended == "no client is there any more"
    assert left.updates < 500
    night = _run(
        population={"clients": 1, "concurrency": 1},
        speed={"sigma": 0.0, "jitter": 0.0},
        availability={"period_seconds": 100.0, "online_share": 0.1},
    )
    assert night.seconds > 400  # ten trainings a day


def test_the_defaults_refuse_nobody_and_a_limit_on_staleness_does() -> None:
    spread = {"sigma": 2.0}
    assert not _run(speed=spread).refused
    assert _run(speed=spread, staleness={"maximum": 0}).refused["too_stale"] > 5


def test_sites_of_the_tasks_own() -> None:
    found = _run(data={"split": "task"}, population={"clients": 8, "concurrency": None})
    assert found.final is not None
    assert found.final > 0.8
    assert found.sites["worst"] > 0.5


def test_sites_with_data_and_speeds_of_their_own() -> None:
    hospitals = ("Cleveland", "Hungary", "VA Long Beach", "Switzerland")
    sections: dict[str, Any] = {
        "task": {"entry": "llmos_stream.scenarios.heart:Heart"},
        "data": {"split": "task", "sites": hospitals},
        "population": {"clients": 4, "concurrency": None},
        "speed": {"kind": "trace", "trace": (1, 1, 5, 20), "jitter": 0.0},
        "simulation": {"updates": 45, "seconds": 20.0},
        "client": {"batch_size": 16, "lr": 0.02},
        "aggregation": {"buffer_size": 1},
    }
    found = _run(**sections)
    assert found.updates == 20 + 20 + 4 + 1
    assert found.seconds == 20.0
    assert found.sites["worst"] > 0.5, "each site is measured on what it holds back"
    other = _run(**{**sections, "data": {"split": "task", "sites": hospitals[::-1]}})
    assert other.updates == found.updates
    assert other.digest != found.digest, "the slow ones have other data"
    with pytest.raises(ConfigError, match="sites: needs split task"):
        devices(data={"sites": hospitals})


def test_a_run_ends_by_the_stop_settings() -> None:
    assert _run(stop={"target": 0.8}).ended == "target"
    assert _run(stop={"max_versions": 3}).versions == 3
    assert _run(simulation={"seconds": 2.0}).seconds == 2.0


def test_a_site_that_overlaps_trains_while_its_update_is_on_its_way() -> None:
    """Fifteen rounds of two seconds, and of the sending only that of the last round."""
    sections: dict[str, Any] = {
        "population": {"clients": 4, "concurrency": None},
        "speed": {"sigma": 0.0, "seconds": 2.0, "jitter": 0.0},
        "links": {"upload_mbit": 0.01},
        "aggregation": {"buffer_size": 4},
    }
    client = {"batch_size": 16, "lr": 0.1}
    in_turn, overlapped = (_run(client={**client, "overlap": value}, **sections) for value in (False, True))
    assert overlapped.updates == in_turn.updates == 60
    sending = in_turn.seconds / 15 - 2.0
    assert sending > 0.3
    assert overlapped.seconds == pytest.approx(30.0 + sending, abs=0.05)
    assert overlapped.staleness["mean"] > in_turn.staleness["mean"]
