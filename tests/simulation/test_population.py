import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos_stream.errors import ConfigError
from llmos_stream.simulation.experiment import make_experiment
from llmos_stream.simulation.population import Population


def _population(seed: int = 0, **sections: Any) -> Population:
    values = {"population": {"clients": 1000}, **sections}
    return Population(make_experiment(values).arms[0].settings, seed)


def test_slowness_is_lognormal_with_median_1() -> None:
    found = _population(speed={"sigma": 1.5}).slowness
    assert np.median(found) == pytest.approx(1.0, rel=0.2)
    assert np.log(found).std() == pytest.approx(1.5, rel=0.1)
    assert (found == _population(speed={"sigma": 1.5}).slowness).all()
    assert (found != _population(seed=1, speed={"sigma": 1.5}).slowness).any()


def test_slowness_by_classes_and_from_a_file(tmp_path: Path) -> None:
    classes = _population(speed={"kind": "classes", "classes": [[0.7, 1.0], [0.25, 4.0], [0.05, 20.0]]}).slowness
    assert {value: int((classes == value).sum()) for value in (1.0, 4.0, 20.0)} == {1.0: 700, 4.0: 250, 20.0: 50}
    trace = tmp_path / "speeds.txt"
    trace.write_text("1\n2.5\n4\n")
    assert _population(speed={"kind": "trace", "trace": str(trace)}).slowness[:5].tolist() == [1.0, 2.5, 4.0, 1.0, 2.5]
    # What is given is what is meant.
    assert _population(speed={"trace": str(trace)}).slowness[:3].tolist() == [1.0, 2.5, 4.0]
    assert set(_population(speed={"classes": ((0.5, 1), (0.5, 3))}).slowness.tolist()) == {1.0, 3.0}
    with pytest.raises(ConfigError, match=r"speed: kind: say trace or classes"):
        _population(speed={"trace": (1, 2), "classes": ((0.5, 1), (0.5, 3))})
    trace.write_text("1\n-2\n")
    with pytest.raises(ConfigError, match=r"speed\.trace: .* must hold one positive number a line"):
        _population(speed={"kind": "trace", "trace": str(trace)})
    with pytest.raises(ConfigError, match=r"speed\.trace"):
        _population(speed={"kind": "trace", "trace": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"with shares that sum to 1"):
        _population(speed={"kind": "classes", "classes": [[0.7, 1.0]]})


def test_a_training_takes_what_speed_and_examples_say() -> None:
    found = _population(speed={"sigma": 0.0, "seconds": 2.0, "seconds_per_example": 0.5, "jitter": 0.2})
    assert [found.training_seconds(0, 10, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([5.6, 7.0, 8.4])


def test_clients_are_there_for_their_part_of_the_day_and_leave_for_good() -> None:
    days = _population(availability={"period_seconds": 100.0, "online_share": 0.25})
    there = [days.there_from(client, 1234.5) == 1234.5 for client in range(1000)]
    assert sum(there) == pytest.approx(250, abs=50)
    for client in range(50):
        when = days.there_from(client, 1234.5)
        assert 1234.5 <= when < 1334.5
        assert days.there_from(client, when + 0.01) == when + 0.01
    gone = _population(availability={"stay_seconds": 10.0})
    assert sum(gone.there_from(client, 10.0) == math.inf for client in range(1000)) == pytest.approx(632, abs=60)


def test_links_are_as_wide_as_they_say() -> None:
    found = _population(links={"upload_mbit": 8.0, "latency_seconds": 0.5})
    assert found.upload_seconds(3, 2_000_000) == pytest.approx(2.5)
    assert found.download_seconds(3, 2_000_000) == 0.5
    spread = _population(links={"upload_mbit": 8.0, "sigma": 1.0})
    times = [spread.upload_seconds(client, 1_000_000) for client in range(1000)]
    assert np.median(times) == pytest.approx(1.0, rel=0.2)
    assert np.log(times).std() == pytest.approx(1.0, rel=0.1)
