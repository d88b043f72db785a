import subprocess
import sys

import pytest

_MILLION = """
from llmos_stream.simulation import simulate
from llmos_stream.simulation.experiment import make_experiment
from tests.bench.usage import peak_mib

arm = make_experiment({
    "simulation": {"updates": 300}, "population": {"clients": 1_000_000, "concurrency": 1000},
    "data": {"split": "drawn"}, "task": {"entry": "blobs"}, "aggregation": {"buffer_size": 10},
}).arms[0]
assert simulate(arm, 0).folded == 300
print(peak_mib())
"""


@pytest.mark.full
def test_a_million_clients_take_less_than_two_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", _MILLION], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1900
