"""The registry: versions kept past the log's retention, and which one is promoted."""

from llmos_stream.registry.archiver import STORE, run_archiver
from llmos_stream.registry.entry import Archived, file_metadata
from llmos_stream.registry.errors import Damaged, NotArchived, StoreUnavailable
from llmos_stream.registry.lookup import find_in_log
from llmos_stream.registry.promotion import promote, promoted, roll_back
from llmos_stream.registry.store import Store, open_store
from llmos_stream.registry.tensors import file_pieces

__all__ = [
    "STORE",
    "Archived",
    "Damaged",
    "NotArchived",
    "Store",
    "StoreUnavailable",
    "file_metadata",
    "file_pieces",
    "find_in_log",
    "open_store",
    "promote",
    "promoted",
    "roll_back",
    "run_archiver",
]
