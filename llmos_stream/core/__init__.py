"""Aggregation as pure functions: updates in, versions out. No clock, no I/O, no global random state."""

from llmos_stream.core.dedup import SequenceWindow
from llmos_stream.core.delta import Whole
from llmos_stream.core.device import device_for
from llmos_stream.core.effects import Duplicate, Effect, Folded, NewVersion, Refused
from llmos_stream.core.pace import Pace
from llmos_stream.core.participants import Expected, Participants
from llmos_stream.core.rule import Changes, Rule
from llmos_stream.core.state import State, release, start, take_back
from llmos_stream.core.step import next_deadline, step, tick
from llmos_stream.core.stopping import Stop, make_stop_rule
from llmos_stream.core.validate import Update, check_head

__all__ = [
    "Changes",
    "Duplicate",
    "Effect",
    "Expected",
    "Folded",
    "NewVersion",
    "Pace",
    "Participants",
    "Refused",
    "Rule",
    "SequenceWindow",
    "State",
    "Stop",
    "Update",
    "Whole",
    "check_head",
    "device_for",
    "make_stop_rule",
    "next_deadline",
    "release",
    "start",
    "step",
    "take_back",
    "tick",
]
