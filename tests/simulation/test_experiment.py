from pathlib import Path

import pytest

from llmos_stream.errors import ConfigError
from llmos_stream.simulation import load_experiment, simulate
from llmos_stream.simulation.experiment import make_experiment

_FILE = """
[simulation]
seeds = 3
[arms.patient]
client.wait_seconds = 60
[arms.hasty]
"client.wait_seconds" = 1
staleness = { kind = "constant" }
[sweep]
aggregation.buffer_size = [2, 4]
"""


def test_arms_are_settings_in_place_of_those_of_all(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(_FILE)
    found = load_experiment(file, {"population.clients": "7"})
    assert [arm.name for arm in found.arms] == [
        "patient buffer_size=2",
        "patient buffer_size=4",
        "hasty buffer_size=2",
        "hasty buffer_size=4",
    ]
    assert found.seeds == range(3)
    last = found.arms[-1].settings
    assert (last.client.wait_seconds, last.staleness.kind, last.aggregation.buffer_size) == (1, "constant", 4)
    assert {arm.settings.population.clients for arm in found.arms} == {7}
    assert len({arm.fingerprint(0) for arm in found.arms} | {found.arms[0].fingerprint(1)}) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[populaton]\nclients = 3", "populaton: there is no such setting; did you mean population?"),
        ("[population]\ncliens = 3", "population.cliens: there is no such setting; did you mean population.clients?"),
        ("[arms.a.agregation]\nmixing = 1", "arms.a: agregation: there is no such setting; did you mean aggregation?"),
        ("[arms.a]\nspeed.sigmas = 1", "arms.a: speed.sigmas: there is no such setting; did you mean speed.sigma?"),
        ("[population]\nclients = 3\nconcurrency = 4", "population: concurrency: there are 3 clients"),
        ("[sweep]\nspeed.sigma = 1", "sweep.speed.sigma: a list of values, of one at least"),
        ("[data]\nsize_sigma = 1", "data: size_sigma: needs split even or drawn; dirichlet has sizes of its own"),
        ("arms = 3", "arms: each is a table, as in [arms.patient]"),
        ("a = [", "is not TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_without_tensors_is_not_split() -> None:
    arm = make_experiment({"task": {"entry": "noop:100"}}).arms[0]
    with pytest.raises(ConfigError, match=r"data.split: task noop:100 gives no tensors to split"):
        simulate(arm, 0)


def test_more_clients_than_examples_draw_their_own() -> None:
    arm = make_experiment({"task": {"entry": "blobs"}, "population": {"clients": 5000}}).arms[0]
    with pytest.raises(ConfigError, match=r'population.clients: 5000 clients, .* say data.split = "drawn"'):
        simulate(arm, 0)
