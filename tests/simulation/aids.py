"""Small experiments, on a task that is learnt in moments."""

from collections.abc import Mapping
from typing import Any

from llmos_stream.simulation import Experiment
from llmos_stream.simulation.experiment import make_experiment

DEVICES: Mapping[str, Mapping[str, Any]] = {
    "simulation": {"updates": 60, "target": 0.8},
    "population": {"clients": 40, "concurrency": 10},
    "task": {"entry": "blobs"},
    "client": {"batch_size": 16, "lr": 0.1},
    "aggregation": {"buffer_size": 5},
    "evaluator": {"every": 2},
}


def devices(arms: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> Experiment:
    """Forty devices, ten at work, with `sections` in place of what is above."""
    values = {name: {**DEVICES.get(name, {}), **sections.get(name, {})} for name in {*DEVICES, *sections}}
    return make_experiment(values, arms)
