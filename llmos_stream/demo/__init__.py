"""A whole federation in one command: who takes part, and how it is run."""

from llmos_stream.demo.embedded import run_embedded
from llmos_stream.demo.processes import run_processes
from llmos_stream.demo.scenario import Cast, Scenario, make_scenario

__all__ = ["Cast", "Scenario", "make_scenario", "run_embedded", "run_processes"]
