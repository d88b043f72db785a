"""Byte parts that grow: in memory up to a limit that many share, beyond it in one temporary file.

What is half received of many clients' updates may be many times a model. The file has no name, so that
the system takes it back however the process ends, and it is read and never mapped: mapped pages would
count as this process's memory.
"""

import hashlib
import heapq
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from llmos_stream.errors import ConfigError, StateError
from llmos_stream.storage.durable import read_exactly
from llmos_stream.types import Part
from llmos_stream.wire import RECORD_COST, Parts, Store

BLOCK = 1 << 20
"""Bytes of the file that one spool takes at a time, and of the parts that are read back."""

_BLOCKS_KEPT = 32  # to be written over: fresh pages cost more than the writing does


class Spools:
    """Makes spools that share `memory_bytes` of memory and one file in `folder` (None: the system's).

    `new` is a store factory for an Assembler. Spools may be used and given back in different threads.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._memory_left = memory_bytes
        self._folder = folder
        self._file: int | None = None
        self._blocks = 0  # the file's size
        self._free: list[int] = []  # a heap: low places first, so that the end can be cut off
        # A spool may be collected in the middle of anything, where a lock would hang: it only says so here.
        self._returned: deque[_Holdings] = deque()

    def new(self) -> "Spool":
        """An empty spool."""
        return Spool(self)

    def _take_memory(self, size: int) -> bool:
        with self._lock:
            self._settle()
            if size > self._memory_left:
                return False
            self._memory_left -= size
            return True

    def _take_block(self) -> int:
        with self._lock:
            self._settle()
            if self._free:
                return heapq.heappop(self._free)
            self._blocks += 1
            return self._blocks - 1

    def _give_back(self, held: "_Holdings") -> None:
        """From a finaliser. Nobody who is waited for here holds the lock for long, but this thread may."""
        self._returned.append(held)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        freed = False
        while self._returned:
            held = self._returned.popleft()
            self._memory_left += held.memory
            self._free += held.blocks
            freed = freed or bool(held.blocks)
        if freed:
            self._cut()

    def _cut(self) -> None:
        free = set(self._free)
        end = self._blocks
        while end > _BLOCKS_KEPT and end - 1 in free:
            end -= 1
        if end < self._blocks and self._file is not None:
            os.ftruncate(self._file, end * BLOCK)
            self._blocks = end
        self._free = [block for block in free if block < self._blocks]
        heapq.heapify(self._free)

    def _write(self, part: memoryview, offset: int) -> None:
        try:
            file = self._opened()
            while part:
                written = os.pwrite(file, part, offset)
                part, offset = part[written:], offset + written
        except OSError as error:
            raise self._failed("written", error) from error

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return read_exactly(self._opened(), size, offset)
        except OSError as error:
            raise self._failed("read", error) from error

    def _opened(self) -> int:
        with self._lock:
            if self._file is None:
                with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                    self._file = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._file).atexit = False
            return self._file

    def _failed(self, what: str, error: OSError) -> StateError:
        folder = self._folder or tempfile.gettempdir()
        return StateError(
            f"wire.spool_dir: what is on its way cannot be {what} in {folder} ({error.strerror or error}); "
            "make room there, name another folder, or lower wire.pending_bytes"
        )


def room_in(folder: Path | None) -> int:
    """Bytes that are free in the folder of spools (None: the system's). Raises ConfigError where none can be made."""
    where = folder or Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=where):
            return shutil.disk_usage(where).free
    except OSError as error:
        raise ConfigError(f"wire.spool_dir: nothing can be written in {where} ({error.strerror or error})") from None


class Spooled(NamedTuple):
    """A payload in a store, its bytes counted and its SHA-256 taken on the way there."""

    parts: Parts
    size: int
    digest: bytes


def spooled(frames: Iterable[Part], store: Store) -> Spooled:
    """Draw the frames of a payload into `store`, one at a time. Takes a while: run it off the event loop."""
    size, digest = 0, hashlib.sha256()
    for frame in frames:
        digest.update(frame)
        size += len(frame)
        if frame:
            store.append(memoryview(frame))
    return Spooled(store, size, digest.digest())


class _Holdings:
    """What one spool has to give back."""

    __slots__ = ("blocks", "memory")

    def __init__(self) -> None:
        self.memory = 0
        self.blocks: list[int] = []


class Spool:
    """One growing sequence of parts (see `wire.Store`). `close`, or the last reference gone, gives back what it holds.

    Appended to by one thread at a time; once it is complete, walked by any number.
    """

    def __init__(self, spools: Spools) -> None:
        self._spools = spools
        self._held = _Holdings()
        self._parts: list[Part] = []  # what came first
        self._in_file = 0  # bytes after those
        self._given_back = weakref.finalize(self, spools._give_back, self._held)
        self._given_back.atexit = False

    def append(self, part: Part) -> None:
        """Keep `part`: as it is while there is memory, in the file from then on. Raises StateError where it cannot.

        Nothing of it is kept then.
        """
        self._check_open()
        cost = len(part) + RECORD_COST
        if not self._in_file and self._spools._take_memory(cost):
            self._held.memory += cost
            self._parts.append(part)
        else:
            self._append_to_file(memoryview(part))

    def __iter__(self) -> Iterator[Part]:
        """The parts from the beginning. Raises StateError where the file cannot be read."""
        self._check_open()
        yield from self._parts
        for begin in range(0, self._in_file, BLOCK):
            self._check_open()
            block = self._held.blocks[begin // BLOCK]
            yield self._spools._read(min(BLOCK, self._in_file - begin), block * BLOCK)

    def close(self) -> None:
        """Give back memory and file; the parts cannot be walked any more."""
        self._parts = []
        self._given_back()

    def _append_to_file(self, part: memoryview) -> None:
        before = self._in_file
        try:
            while part:
                used = self._in_file % BLOCK
                if self._in_file == len(self._held.blocks) * BLOCK:
                    self._held.blocks.append(self._spools._take_block())
                piece = part[: BLOCK - used]
                self._spools._write(piece, self._held.blocks[self._in_file // BLOCK] * BLOCK + used)
                self._in_file += len(piece)
                part = part[len(piece) :]
        except StateError:
            self._in_file = before  # the part may be tried again once there is room
            raise

    def _check_open(self) -> None:
        if not self._given_back.alive:
            raise ValueError("this spool has been closed")
