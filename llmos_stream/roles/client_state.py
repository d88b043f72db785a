"""What a client must not forget: the sequence numbers it used and what its lossy codec still owes.

A state folder holds

    sequence.json         {"client_id": str, "next": int}, written before an update is sent
    residual.safetensors  the error feedback's residual, written after it was acknowledged
    lock                  held by the process that uses the folder

Files are replaced atomically: a kill leaves the old one or the new one.
"""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from llmos_stream.errors import StateError

_RESIDUAL = "residual"


class ClientState:
    """Sequence numbers and residual of one client, on disk, or in memory only where `folder` is None.

    Raises StateError when the folder cannot be made, is in use, damaged, or another client's.
    """

    def __init__(self, client_id: str, folder: Path | None) -> None:
        self._client_id = client_id
        self._folder = folder
        self._lock: int | None = None
        # A client whose disk was lost must not use a number again: without a file, start from the clock.
        self._next = 0 if folder is None else time.time_ns() // 1_000_000
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(folder / "lock", client_id)
            except OSError as error:
                raise StateError(f"client.state_dir: {folder} cannot be used: {error.strerror or error}") from error
            try:
                self._next = _read_next(folder / "sequence.json", client_id, otherwise=self._next)
            except BaseException:
                self.close()
                raise

    def take_sequence(self) -> int:
        """The next sequence number, recorded as used before it is returned."""
        taken = self._next
        self._next = taken + 1
        if self._folder is not None:
            _replace(self._folder / "sequence.json", orjson.dumps({"client_id": self._client_id, "next": self._next}))
        return taken

    def load_residual(self) -> Tensor | None:
        """The residual kept last (flat, float32), or None."""
        if self._folder is None or not (path := self._folder / "residual.safetensors").exists():
            return None
        try:
            return load_file(path)[_RESIDUAL]
        except (SafetensorError, KeyError, OSError) as error:
            raise StateError(
                f"{path} is damaged ({error}); delete it to go on without error feedback's memory"
            ) from error

    def save_residual(self, residual: Tensor | None) -> None:
        if self._folder is not None and residual is not None:
            _replace(self._folder / "residual.safetensors", save({_RESIDUAL: residual}))

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_next(path: Path, client_id: str, otherwise: int) -> int:
    if not path.exists():
        return otherwise
    try:
        state = orjson.loads(path.read_bytes())
        owner, following = state["client_id"], int(state["next"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to start with new sequence numbers") from error
    if owner != client_id:
        raise StateError(f"{path} belongs to client {owner}; set client.state_dir or client.id")
    return following


def _lock(path: Path, client_id: str) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StateError(
            f"client {client_id} is running already (its folder {path.parent} is in use); "
            "give this one a client.id of its own"
        ) from None
    return handle


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    # The new name must be on the disk too, or a loss of power brings the old file back.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
