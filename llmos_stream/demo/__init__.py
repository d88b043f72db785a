"""A whole federation in one command: its clients, and how they run."""

from llmos_stream.demo.processes import run_processes
from llmos_stream.demo.scenario import ClientMix, Scenario, make_scenario

__all__ = ["ClientMix", "Scenario", "make_scenario", "run_processes"]
