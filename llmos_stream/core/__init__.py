"""Aggregation as pure functions: updates in, versions out. No clock, no I/O, no global random state."""

from llmos_stream.core.dedup import Sequences, SequenceWindow
from llmos_stream.core.delta import Delta, Whole
from llmos_stream.core.device import device_for
from llmos_stream.core.effects import Duplicate, Effect, Folded, NewVersion, Refused
from llmos_stream.core.pace import Pace
from llmos_stream.core.staleness import discount, staleness_of
from llmos_stream.core.state import State, start
from llmos_stream.core.step import next_deadline, step, tick
from llmos_stream.core.stopping import Stop, StopRule
from llmos_stream.core.strategy import Strategy, make_strategy
from llmos_stream.core.validate import Update, check_and_clip, check_delta, check_head, clip_factor

__all__ = [
    "Delta",
    "Duplicate",
    "Effect",
    "Folded",
    "NewVersion",
    "Pace",
    "Refused",
    "SequenceWindow",
    "Sequences",
    "State",
    "Stop",
    "StopRule",
    "Strategy",
    "Update",
    "Whole",
    "check_and_clip",
    "check_delta",
    "check_head",
    "clip_factor",
    "device_for",
    "discount",
    "make_strategy",
    "next_deadline",
    "staleness_of",
    "start",
    "step",
    "tick",
]
