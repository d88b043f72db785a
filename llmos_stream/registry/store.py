"""Archived versions in a directory or an object store, any that fsspec has a file system for.

    <url>/<federation>/<number, 8 digits>/model.safetensors   the weights by tensor name
    <url>/<federation>/<number, 8 digits>/version.json        everything else, its manifest too (see `entry`)

A version exists once its version.json does, which is written last. A folder without one, which a killed process left,
is overwritten. All functions block: call them off the event loop.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from llmos_stream.codec import weights_digest
from llmos_stream.config import RegistrySettings
from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.log import Pointer
from llmos_stream.log.versions import Version
from llmos_stream.registry.entry import ArchivedVersion, Damaged, dump_entry, entry_of, file_metadata, load_entry
from llmos_stream.registry.tensors import data_size, file_header, file_pieces, is_exact, read_buffers

_MODEL = "model.safetensors"
_ENTRY = "version.json"
_NUMBER = re.compile(r"[0-9]{8,18}")
_PIECE_BYTES = 4 << 20
_MAX_ENTRY_BYTES = 128 << 20


class StoreUnavailable(LlmosError):
    """The directory or object store of the registry did not take or give something; it may later."""

    retriable: ClassVar[bool] = True


class NotArchived(LlmosError):
    """The registry does not hold this version."""


def open_store(settings: RegistrySettings, federation: str) -> "VersionStore":
    """Return the store of a federation's versions under `registry.url`.

    Raises:
        ConfigError: The URL is missing or wrong, or fsspec lacks the package for it.
    """
    url = settings.url
    if url is None:
        raise ConfigError("registry.url: say where versions are archived, as in file:///srv/models or s3://bucket/path")
    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"registry.url: {_on_one_line(error)}") from None
    except Exception as error:  # every kind of store raises its own
        raise ConfigError(f"registry.url: {type(error).__name__}: {_on_one_line(error)}") from error
    return VersionStore(fs, root, federation)


class VersionStore:
    """The archived versions of one federation.

    Raises:
        StoreUnavailable: By every method, when the store does not answer.
    """

    def __init__(self, fs: AbstractFileSystem, root: str, federation: str) -> None:
        self._fs = fs
        self._root = f"{root.rstrip('/')}/{federation}"
        self._federation = federation

    def numbers(self) -> list[int]:
        """List the versions in the store, in order."""
        with self._translated_errors(self._root):
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            # A name is read as a number only, and paths are made of the number.
            names = {path.rstrip("/").rpartition("/")[2] for path in found}
            numbers = sorted(int(name) for name in names if _NUMBER.fullmatch(name))
            return [number for number in numbers if self._exists(self._path(number, _ENTRY))]

    def check_writable(self) -> None:
        """Write a file as large as nothing, and remove it where that is allowed."""
        path = f"{self._root}/.writable"
        with self._translated_errors(path):
            with self._create(path):
                pass
            with suppress(Exception):  # every kind of store raises its own
                self._remove(path)

    def has(self, number: int) -> bool:
        """Whether the store holds a version."""
        path = self._path(number, _ENTRY)
        with self._translated_errors(path):
            self._fs.invalidate_cache()
            return self._exists(path)

    def entry(self, number: int) -> ArchivedVersion:
        """Describe an archived version.

        Raises:
            NotArchived: The store does not hold it.
            Damaged: Its description is not what was archived.
        """
        path = self._path(number, _ENTRY)
        with self._translated_errors(path), self._open(path, number) as file:
            data = file.read(_MAX_ENTRY_BYTES + 1)
        if len(data) > _MAX_ENTRY_BYTES:
            raise Damaged(f"{path} is longer than any version's")
        try:
            return load_entry(data, self._federation, number)
        except Damaged as error:
            raise Damaged(f"version {number} in the registry: {error}; remove {path}") from None

    def save(self, version: Version, at: Pointer) -> ArchivedVersion:
        """Archive a version that lies at `at` in the log, and replace what the store has of it."""
        number = version.head.number
        model = self._path(number, _MODEL)
        metadata = file_metadata(self._federation, number, version.head.weights_digest)
        digest, size = hashlib.sha256(), 0
        with self._translated_errors(model):
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
        with self._translated_errors(path):
            with self._create(f"{path}.new") as file:
                file.write(data)
            self._fs.mv(f"{path}.new", path)
        return entry

    def load(self, number: int) -> tuple[ArchivedVersion, Tensor]:
        """Return a version and its weights (flat, float32), both verified.

        Tensors of a narrower dtype come back rounded to it. The digest of the weights is checked where there are none.

        Raises:
            NotArchived: The store does not hold it.
            Damaged: Its files are not what was archived.
        """
        entry = self.entry(number)
        path = self._path(number, _MODEL)
        header = file_header(entry.layout, entry.metadata)
        if entry.size != len(header) + data_size(entry.layout):
            raise Damaged(f"version {number} in the registry: {_ENTRY} does not say the size of its tensors")
        with self._translated_errors(path), self._open(path, number) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size != entry.size or file.read(len(header)) != header:
                raise Damaged(f"{path} ({size} bytes) is not the file that was archived ({entry.size} bytes)")
            digest = hashlib.sha256(header)
            weights = torch.empty(entry.layout.numel, dtype=torch.float32, device="cpu")
            for buffer in read_buffers(weights, entry.layout):
                for start in range(0, len(buffer), _PIECE_BYTES):
                    part = file.read(min(_PIECE_BYTES, len(buffer) - start))
                    digest.update(part)
                    if len(part) != min(_PIECE_BYTES, len(buffer) - start):
                        raise Damaged(f"{path} ends too soon")
                    buffer[start : start + len(part)] = part
        if digest.digest() != entry.sha256:
            raise Damaged(f"{path} is not the file that was archived as version {number}: its SHA-256 differs")
        if is_exact(entry.layout) and weights_digest(weights) != entry.weights_digest:
            raise Damaged(f"{path}: the weights do not match the digest of version {number}")
        return entry, weights

    def delete(self, number: int) -> None:
        """Delete a version, if it is there."""
        with self._translated_errors(self._path(number, _ENTRY)):
            for name in (_ENTRY, f"{_ENTRY}.new", _MODEL):
                self._remove(self._path(number, name))
            if isinstance(self._fs, LocalFileSystem) and self._exists(self._path(number)):
                self._fs.rmdir(self._path(number))

    def _path(self, number: int, name: str = "") -> str:
        return f"{self._root}/{number:08d}/{name}".rstrip("/")

    def _exists(self, path: str) -> bool:
        """Unlike fsspec's `exists`, which by default takes a silent store for one without the file."""
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

    @contextmanager
    def _translated_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except LlmosError:
            raise
        except Exception as error:  # every kind of store raises its own
            said = f"{type(error).__name__}: {_on_one_line(error)}"
            raise StoreUnavailable(f"the registry at {path}: {said}") from error


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
