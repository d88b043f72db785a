"""Worked examples on real data that ships with the package: heart, lending, sensors, speeches."""

from llmos_stream.scenarios.catalogue import SCENARIOS, Scenario
from llmos_stream.scenarios.study import Study, run_study

__all__ = ["SCENARIOS", "Scenario", "Study", "run_study"]
