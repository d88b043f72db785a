"""What spools hold, all that was given back taken into account."""

from llmos_stream.storage.spool import BLOCK, Spools


def memory_left(spools: Spools) -> int:
    """Bytes that may still be kept in memory."""
    with spools._lock:
        spools._settle()
        return spools._memory_left


def file_bytes(spools: Spools) -> int:
    """The size of the file, what is free in it included."""
    with spools._lock:
        spools._settle()
        return spools._blocks * BLOCK
