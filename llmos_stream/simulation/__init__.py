"""Many clients under a virtual clock, on the same `core` and `codec` that run on Kafka: see `docs/simulation.md`."""

from llmos_stream.simulation.experiment import Arm, Experiment, load_experiment
from llmos_stream.simulation.results import Result
from llmos_stream.simulation.run import simulate
from llmos_stream.simulation.settings import RunSettings

__all__ = ["Arm", "Experiment", "Result", "RunSettings", "load_experiment", "simulate"]
