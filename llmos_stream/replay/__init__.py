"""Replay of a log: versions rebuilt from their manifests, audited, or made under another rule."""

from llmos_stream.core import Changes
from llmos_stream.replay.audit import Audit, audit
from llmos_stream.replay.index import Index, Missing
from llmos_stream.replay.rebuild import Rebuilder, RebuildOutcome, Verdict
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.replay.shadow import run_shadow, shadow_settings
from llmos_stream.replay.whatif import Change, WhatIf, WhatIfResult

__all__ = [
    "Audit",
    "Change",
    "Changes",
    "Index",
    "Missing",
    "RebuildOutcome",
    "Rebuilder",
    "ReplayLog",
    "Verdict",
    "WhatIf",
    "WhatIfResult",
    "audit",
    "run_shadow",
    "shadow_settings",
]
