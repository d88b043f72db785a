"""A federation's log, typed: one module a topic, read by everybody."""

from llmos_stream.log.control import ControlView, Pointer, Promotion, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import VersionIndex, version_index
from llmos_stream.log.replica import Follower, Replica
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.log.versions import Version

__all__ = [
    "ControlView",
    "Federation",
    "Follower",
    "Pointer",
    "Promotion",
    "Replica",
    "RunEnd",
    "Version",
    "VersionIndex",
    "version_index",
    "wait_for_topics",
]
