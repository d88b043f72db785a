"""Archived versions in a directory or an object store, whatever fsspec has a file system for.

    <url>/<federation>/<number, 8 digits>/model.safetensors   the weights by tensor name
    <url>/<federation>/<number, 8 digits>/version.json        everything else, its manifest too (see `entry`)

A version is there once its version.json is, which is written last; what a kill has left without one is written
over. Everything here blocks: call it off the event loop.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from llmos_stream.codec import weights_digest
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.log import Pointer, Version
from llmos_stream.registry.entry import Archived, dump_entry, entry_of, file_metadata, load_entry
from llmos_stream.registry.errors import Damaged, NotArchived, StoreUnavailable
from llmos_stream.registry.tensors import data_size, file_header, file_pieces, keeps_weights, rooms

_MODEL = "model.safetensors"
_ENTRY = "version.json"
_NUMBER = re.compile(r"[0-9]{8,18}")
_PIECE_BYTES = 4 << 20
_MAX_ENTRY_BYTES = 128 << 20


def open_store(settings: Settings) -> "Store":
    """The store that `registry.url` names. Raises ConfigError, also where fsspec lacks the package for it."""
    url = settings.registry.url
    if url is None:
        raise ConfigError("registry.url: say where versions are archived, as in file:///srv/models or s3://bucket/path")
    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"registry.url: {error}") from None
    return Store(fs, root, settings.federation.name)


class Store:
    """The archived versions of one federation. Every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, fs: AbstractFileSystem, root: str, federation: str) -> None:
        self._fs = fs
        self._root = f"{root.rstrip('/')}/{federation}"
        self._federation = federation

    def numbers(self) -> list[int]:
        """The versions that are there, in order."""
        with self._reaching(self._root):
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            # Names are taken for nothing but numbers, and a path is made of the number.
            names = {path.rstrip("/").rpartition("/")[2] for path in found}
            numbers = sorted(int(name) for name in names if _NUMBER.fullmatch(name))
            return [number for number in numbers if self._exists(self._path(number, _ENTRY))]

    def has(self, number: int) -> bool:
        path = self._path(number, _ENTRY)
        with self._reaching(path):
            self._fs.invalidate_cache()
            return self._exists(path)

    def entry(self, number: int) -> Archived:
        """What is known of an archived version. Raises NotArchived and Damaged."""
        path = self._path(number, _ENTRY)
        with self._reaching(path), self._open(path, number) as file:
            data = file.read(_MAX_ENTRY_BYTES + 1)
        if len(data) > _MAX_ENTRY_BYTES:
            raise Damaged(f"{path} is longer than any version's")
        try:
            return load_entry(data, self._federation, number)
        except Damaged as error:
            raise Damaged(f"version {number} in the registry: {error}; remove {path}") from None

    def save(self, version: Version, at: Pointer) -> Archived:
        """Archive a version, which lies at `at` in the log. One that is there already is replaced."""
        number = version.head.number
        model = self._path(number, _MODEL)
        metadata = file_metadata(self._federation, number, version.head.weights_digest)
        digest, size = hashlib.sha256(), 0
        with self._reaching(model):
            self._remove(self._path(number, _ENTRY))
            with self._create(model) as file:
                for piece in file_pieces(version.weights, version.layout, metadata):
                    for start in range(0, len(piece), _PIECE_BYTES):
                        part = piece[start : start + _PIECE_BYTES]
                        file.write(part)
                        digest.update(part)
                    size += len(piece)
        entry = entry_of(self._federation, version, at, size, digest.digest())
        path, data = self._path(number, _ENTRY), dump_entry(entry)
        with self._reaching(path):
            with self._create(f"{path}.new") as file:
                file.write(data)
            self._fs.mv(f"{path}.new", path)
        return entry

    def pieces(self, entry: Archived) -> Iterator[bytes]:
        """The safetensors file of a version. Raises Damaged, at the end, when it is not the one archived."""
        path = self._path(entry.version, _MODEL)
        digest, size = hashlib.sha256(), 0
        with self._reaching(path), self._open(path, entry.version) as file:
            while size <= entry.size and (piece := file.read(_PIECE_BYTES)):
                digest.update(piece)
                size += len(piece)
                yield piece
        self._confirm(entry, path, size, digest.digest())

    def load(self, number: int) -> tuple[Archived, Tensor]:
        """A version and its weights (flat, float32), verified. Raises NotArchived and Damaged.

        Tensors of a narrower dtype come back rounded to it, and the digest of the weights is checked where there is
        none of those.
        """
        entry = self.entry(number)
        path = self._path(number, _MODEL)
        header = file_header(entry.layout, entry.metadata)
        if entry.size != len(header) + data_size(entry.layout):
            raise Damaged(f"version {number} in the registry: {_ENTRY} does not say the size of its tensors")
        with self._reaching(path), self._open(path, number) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size != entry.size or file.read(len(header)) != header:
                raise Damaged(f"{path} ({size} bytes) is not the file that was archived ({entry.size} bytes)")
            digest = hashlib.sha256(header)
            weights = torch.empty(entry.layout.numel, dtype=torch.float32)
            for room in rooms(weights, entry.layout):
                for start in range(0, len(room), _PIECE_BYTES):
                    part = file.read(min(_PIECE_BYTES, len(room) - start))
                    digest.update(part)
                    if len(part) != min(_PIECE_BYTES, len(room) - start):
                        raise Damaged(f"{path} ends too soon")
                    room[start : start + len(part)] = part
        self._confirm(entry, path, size, digest.digest())
        if keeps_weights(entry.layout) and weights_digest(weights) != entry.weights_digest:
            raise Damaged(f"{path}: the weights do not match the digest of version {number}")
        return entry, weights

    def delete(self, number: int) -> None:
        """Forget a version; one that is not there is no error."""
        with self._reaching(self._path(number, _ENTRY)):
            for name in (_ENTRY, f"{_ENTRY}.new", _MODEL):
                self._remove(self._path(number, name))
            if isinstance(self._fs, LocalFileSystem) and self._exists(self._path(number)):
                self._fs.rmdir(self._path(number))

    def _path(self, number: int, name: str = "") -> str:
        return f"{self._root}/{number:08d}/{name}".rstrip("/")

    def _exists(self, path: str) -> bool:
        """Not fsspec's own `exists`, which by default takes a store that does not answer for one without the file."""
        try:
            self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _remove(self, path: str) -> None:
        if self._exists(path):
            self._fs.rm_file(path)

    @contextmanager
    def _create(self, path: str) -> Iterator[Any]:
        local = isinstance(self._fs, LocalFileSystem)
        if local:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self._fs.open(path, "wb") as file:
            yield file
            if local:
                file.flush()
                os.fsync(file.fileno())

    def _open(self, path: str, number: int) -> Any:
        try:
            return self._fs.open(path, "rb")
        except FileNotFoundError:
            if path.endswith(_ENTRY):
                raise NotArchived(f"version {number} is not in the registry ({self._root})") from None
            raise Damaged(f"version {number} in the registry: {path} is missing") from None

    @staticmethod
    def _confirm(entry: Archived, path: str, size: int, sha256: bytes) -> None:
        if (size, sha256) != (entry.size, entry.sha256):
            raise Damaged(f"{path} is not the file that was archived as version {entry.version}: its SHA-256 differs")

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except LlmosError:
            raise
        except Exception as error:  # every kind of store has its own
            raise StoreUnavailable(f"the registry at {path}: {type(error).__name__}: {error}") from error
