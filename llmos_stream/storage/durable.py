"""Files that survive a kill and a loss of power: on the disk before anything names them, replaced atomically."""

import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from llmos_stream.errors import StateError
from llmos_stream.types import Part

_PIECE = 1 << 20


class DurableFile:
    """A file that is written once, from its beginning, and then read by position.

    It stays readable when its name is deleted. What it holds is on the disk once `sync` returns, its name once
    `replace` has put a file beside it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def create(cls, path: Path, over: Path | None = None) -> Self:
        """A new file; written over `over`, where given, whose pages and blocks cost less than fresh ones."""
        if over is not None:
            over.replace(path)
        return cls(path, os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if over is None else 0), 0o600))

    @classmethod
    def open(cls, path: Path) -> Self:
        """One that is only read."""
        file = cls(path, os.open(path, os.O_RDONLY))
        file.size = os.fstat(file._descriptor).st_size
        return file

    def write(self, part: Part) -> None:
        """Write on from where the file ends."""
        view = memoryview(part)
        while view:
            written = os.pwrite(self._descriptor, view, self.size)
            self.size += written
            view = view[written:]

    def sync(self) -> None:
        """Return when all bytes are on the disk."""
        if os.fstat(self._descriptor).st_size > self.size:
            os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        """The `size` bytes from `offset` on. Raises OSError, also where the file ends before."""
        return read_exactly(self._descriptor, size, offset)


class FileParts:
    """`size` bytes of a file from `begin` on, as parts of up to a MiB; each walk reads them anew."""

    def __init__(self, file: DurableFile, begin: int, size: int) -> None:
        self._file = file
        self._begin = begin
        self._size = size

    def __iter__(self) -> Iterator[Part]:
        """Read the parts from the beginning. Raises StateError where the file cannot be read."""
        end = self._begin + self._size
        for offset in range(self._begin, end, _PIECE):
            try:
                yield self._file.read(min(_PIECE, end - offset), offset)
            except OSError as error:
                raise StateError(f"{self._file.path} cannot be read: {error.strerror or error}") from error


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """The `size` bytes from `offset` on. Raises OSError, also where the file ends before."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # rare: a signal, or a network's file system
        if not (more := os.pread(descriptor, size - len(data), offset + len(data))):
            raise OSError(errno.EIO, f"the file ends before byte {offset + size}")
        data += more
    return data


def replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of the file, with all that was written to its folder before: all of it or nothing."""
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)
    fresh.replace(path)
    _sync_folder(path.parent)  # or a loss of power brings the old file back


def _sync_folder(folder: Path) -> None:
    """Names of new files in the folder are on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
