"""For tests of what is built on this package: a federation that runs, a broker that fails, time that obeys.

See the room's README.md for an example.
"""

from llmos_stream.testing.clock import ManualClock
from llmos_stream.testing.faults import Call, FaultyBroker, Hook
from llmos_stream.testing.federation import RunningFederation, quick_settings, running_federation
from llmos_stream.testing.log import WatchedLog, until
from llmos_stream.testing.role import RunningRole, running_role
from llmos_stream.testing.sites import run_sites
from llmos_stream.testing.virtual_time import LoopClock, VirtualTimeLoop, run_in_virtual_time

__all__ = [
    "Call",
    "FaultyBroker",
    "Hook",
    "LoopClock",
    "ManualClock",
    "RunningFederation",
    "RunningRole",
    "VirtualTimeLoop",
    "WatchedLog",
    "quick_settings",
    "run_in_virtual_time",
    "run_sites",
    "running_federation",
    "running_role",
    "until",
]
