"""A federation's log, typed: one module a topic, read by everybody.

What needs torch, which takes seconds to import, has no place in this face: commands that compute nothing go without.
"""

from llmos_stream.log.control import ControlView, Pointer, Promotion, RunEnd
from llmos_stream.log.topics import wait_for_topics

__all__ = [
    "ControlView",
    "Pointer",
    "Promotion",
    "RunEnd",
    "wait_for_topics",
]
