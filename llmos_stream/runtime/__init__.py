"""How a process lives: tasks, signals, work off the event loop, retries, logs."""

from llmos_stream.runtime.background import Background
from llmos_stream.runtime.clock import SYSTEM_CLOCK, Clock
from llmos_stream.runtime.health import BROKER, MODEL, Health, met
from llmos_stream.runtime.logs import configure_logging
from llmos_stream.runtime.offload import Offload
from llmos_stream.runtime.process import ExitCode, run_process
from llmos_stream.runtime.shutdown import Shutdown
from llmos_stream.runtime.tasks import run_all, run_while

__all__ = [
    "BROKER",
    "MODEL",
    "SYSTEM_CLOCK",
    "Background",
    "Clock",
    "ExitCode",
    "Health",
    "Offload",
    "Shutdown",
    "configure_logging",
    "met",
    "run_all",
    "run_process",
    "run_while",
]
