"""The registry: versions kept beyond the log's retention, and which one is promoted."""

from llmos_stream.registry.archiver import STORE, run_archiver
from llmos_stream.registry.entry import ArchivedVersion, Damaged, file_metadata
from llmos_stream.registry.lookup import KeptVersion, find_in_log, find_version, nothing_in_log
from llmos_stream.registry.promotion import promote, promoted, roll_back
from llmos_stream.registry.store import NotArchived, StoreUnavailable, VersionStore, open_store
from llmos_stream.registry.tensors import file_pieces
from llmos_stream.registry.warm_start import warm_start_of

__all__ = [
    "STORE",
    "ArchivedVersion",
    "Damaged",
    "KeptVersion",
    "NotArchived",
    "StoreUnavailable",
    "VersionStore",
    "file_metadata",
    "file_pieces",
    "find_in_log",
    "find_version",
    "nothing_in_log",
    "open_store",
    "promote",
    "promoted",
    "roll_back",
    "run_archiver",
    "warm_start_of",
]
