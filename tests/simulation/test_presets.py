"""By the defaults, and by each preset, no site is so slow that its every update is refused."""

from typing import Any

import pytest

from llmos_stream.config.presets import PRESETS
from llmos_stream.simulation import Result, simulate
from llmos_stream.simulation.experiment import make_experiment

_SCENE: dict[str, Any] = {
    "simulation": {"updates": 700},
    "population": {"clients": 12, "concurrency": None},
    "speed": {"kind": "trace", "trace": [*[1] * 11, 50], "jitter": 0.0},
    "task": {"entry": "blobs"},
    "client": {"batch_size": 16, "lr": 0.1},
    "evaluator": {"every": 100},
}


def _with_a_very_slow_site(**sections: Any) -> Result:
    found = simulate(make_experiment({**_SCENE, **sections}).arms[0], 1)
    assert found.clients_seen == 12
    return found


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_no_site_is_always_refused(preset: str | None) -> None:
    found = _with_a_very_slow_site(federation={} if preset is None else {"preset": preset})
    assert found.staleness["max"] > 40
    assert found.clients_never_folded == 0
    assert found.refused == {}


def test_a_version_of_a_preset_is_that_of_its_settings() -> None:
    said = _with_a_very_slow_site(staleness={"kind": "constant"}, aggregation={"buffer_size": 10})
    assert _with_a_very_slow_site(federation={"preset": "silos"}).digest == said.digest


def test_a_maximum_of_ones_own_can_refuse_it_always() -> None:
    found = _with_a_very_slow_site(staleness={"maximum": 20})
    assert found.clients_never_folded == 1
