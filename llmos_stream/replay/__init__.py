"""The log told again: versions rebuilt from their manifests, looked into, or made under another rule."""

from llmos_stream.core import Changes
from llmos_stream.replay.audit import Audit, Item, Presence, audit
from llmos_stream.replay.difference import Difference, difference
from llmos_stream.replay.errors import Missing, UpdateMissing
from llmos_stream.replay.index import Entry, Index, read_index
from llmos_stream.replay.log import ReplayLog
from llmos_stream.replay.naming import live_of, shadow_of
from llmos_stream.replay.rebuild import Outcome, Rebuilding, Verdict
from llmos_stream.replay.shadow import run_shadow, shadow_settings
from llmos_stream.replay.updates import RecordedUpdates
from llmos_stream.replay.whatif import Change, Point, Told, WhatIf

__all__ = [
    "Audit",
    "Change",
    "Changes",
    "Difference",
    "Entry",
    "Index",
    "Item",
    "Missing",
    "Outcome",
    "Point",
    "Presence",
    "Rebuilding",
    "RecordedUpdates",
    "ReplayLog",
    "Told",
    "UpdateMissing",
    "Verdict",
    "WhatIf",
    "audit",
    "difference",
    "live_of",
    "read_index",
    "run_shadow",
    "shadow_of",
    "shadow_settings",
]
