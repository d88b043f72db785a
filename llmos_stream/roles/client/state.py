"""What a client must not forget: the sequences it used, its unsent update, its error feedback's residual, its carry.

A state folder holds

    state.json              what counts, replaced atomically (below)
    update-N.bin            the message of the unsent update N, as on the wire but for the order: the payload, which
                            is written slice by slice as it is encoded, then the prelude, which is known only then
    residual-N.safetensors  the error feedback's residual after update N was encoded
    carry-N.safetensors     of a model in fragments, what update N has left to carry (see `carry`)
    lock                    held by the process that uses the folder

and, of a model that is not shared as a whole, personal.safetensors (see `personal`).

    state.json
    client_id   str
    next        int         the sequence of the next update: one more than the last, or higher where the log shows that
                            others were folded under this name (`core.client_sequences`). A new folder begins anywhere
    unsent      null        nothing waits to be sent; or the update that the log has not acknowledged yet:
                            {"file": str, "size": int, "digest": hex SHA-256 of the prelude, "payload": int}
                            (the prelude names the payload's own digest; "payload" is its bytes, which come first)
    residual    null        none; or {"file": str, "size": int, "digest": "sums:" and eight hex digits, "base": int}
                            (a checksum of the elements: it guards against damage, not against malice; the version
                            that update N was of, missing in earlier releases)
    carry       missing     nothing is carried; or {"file", "size", "digest": as of a residual,
                            "fragments": [hex digest], "unsent": [int], "base": int}. One that is damaged or of another
                            model is told of and dropped. Releases that do not know this key go on without

An update, its residual, its carry and the next sequence become durable together, by one replacement of
`state.json`: the files it names are on the disk before, the others are deleted after, but for the last
residual and the last carry, which the next are written over. A kill leaves the state before or the state
after, and leftovers that the next opening deletes.

Folders of older releases are read, and become as above with the first update. In state.json of the second
release "payload" is missing: the prelude comes first there, and the residual's digest is the hex SHA-256 of
its elements. A folder of the first release holds `sequence.json` ({"client_id", "next"}) and
`residual.safetensors` in their place.
"""

import fcntl
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from torch import Tensor

from llmos_stream.core.client_sequences import CHANCES, next_sequence
from llmos_stream.errors import StateError
from llmos_stream.roles.client.carry import Carried, Carry
from llmos_stream.roles.client.outcomes import Outcomes
from llmos_stream.roles.client.state_files import (
    CARRY,
    RESIDUAL,
    NamedCarry,
    Payload,
    StateRecord,
    Unsent,
    finish_update,
    keep_payload,
    read_carry,
    read_residual,
    read_state,
    read_update,
    write_payload,
    write_state,
)
from llmos_stream.roles.client.state_vectors import NamedFile, write_vector
from llmos_stream.types import Part
from llmos_stream.wire import MemoryStore, Store

__all__ = ["ClientState", "Payload", "Unsent"]

logger = logging.getLogger(__name__)

_STATE, _OLD_STATE, _OLD_RESIDUAL = "state.json", "sequence.json", "residual.safetensors"
_STARTS = 1 << 20
_OURS = re.compile(
    r"update-\d+\.bin|(residual(-\d+)?|carry-\d+)\.safetensors|sequence\.json|(state|sequence|residual|personal)\.new"
)


class ClientState:
    """The state of one client, on disk, or in memory only where `folder` is None: its payloads are in a `store` then.

    Whoever reads and then changes it holds `mutex` meanwhile. Raises StateError when the folder
    cannot be made or written, is in use, damaged, or another client's.
    """

    def __init__(self, client_id: str, folder: Path | None, store: Callable[[], Store] = MemoryStore) -> None:
        self.mutex = threading.Lock()
        self._client_id = client_id
        self._folder = folder
        self._store = store
        self._lock: int | None = None
        self._unsent: Unsent | None = None
        self._residual: Tensor | None = None
        self._residual_base: int | None = None
        self._spare: dict[str, Path] = {}  # the last residual and carry, which the state no longer names
        self._record = StateRecord(0)
        self._is_new = True
        self.outcomes = Outcomes(client_id)
        self.carry = Carry()
        """What it has not sent yet of a model in fragments; of an earlier process, once it is `restore`d."""
        self._is_restored = False
        if folder is not None:
            with self._state_errors():
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(folder / "lock", client_id)
            try:
                with self._state_errors():
                    self._open(folder)
            except BaseException:
                self.close()
                raise
        self._next = self._record.next

    @property
    def folder(self) -> Path | None:
        """Where it is; None: in memory."""
        return self._folder

    def begin(self, numbers: Sequence[int] | None) -> None:
        """Note what the log says has been folded under this client's name, before the first update of this process."""
        self.outcomes.begin(numbers, 0 if self._is_new else self._next)

    def take_sequence(self) -> int:
        """A sequence number for an update to `spool`; it is not given out again, come of it what may."""
        if self.outcomes.is_lost:
            self._is_new, self._next = True, secrets.randbelow(_STARTS)
        apart, window = self._is_new or self.outcomes.is_shared, self.outcomes.window
        wanted = 0 if self._is_new and window is not None else self._next
        sequence = next_sequence(wanted, window, secrets.randbelow(CHANCES), apart=apart)
        if sequence != self._next:
            logger.warning(
                "going on with sequence %d, not %d: others were folded under this name", sequence, self._next
            )
        self._is_new = self.outcomes.is_shared = self.outcomes.is_lost = False
        self._next = sequence + 1
        return sequence

    def unsent(self) -> Unsent | None:
        """The update that was not acknowledged, if any."""
        if self._unsent is None and self._folder is not None and self._record.unsent is not None:
            path = self._folder / self._record.unsent.file
            if not path.exists():
                logger.warning("%s is gone: going on without that update", path)
                with self._state_errors():
                    self._commit(self._folder, replace(self._record, next=self._next, unsent=None))
                return None
            self._unsent = read_update(path, self._record.unsent, self._client_id)
        return self._unsent

    def residual(self) -> Tensor | None:
        """The residual after the last update (flat, float32; not a copy: good until the next), or None."""
        if self._residual is None and self._folder is not None and self._record.residual is not None:
            path = self._folder / self._record.residual.file
            if not path.exists():
                logger.warning("%s is gone: going on without error feedback's memory", path)
                return None
            self._residual = read_residual(path, self._record.residual)
        return self._residual

    def drop_residual_after(self, newest: int) -> None:
        """Forget a residual that is of a later version than the newest: another run's, under the same name.

        Raises:
            StateError: That cannot be written.
        """
        named = self._record.residual
        base = self._residual_base if named is None else named.base
        if base is None or base <= newest:
            return
        logger.warning(
            "error feedback's memory is dropped: it is of version %d, and this federation is at version %d",
            base,
            newest,
        )
        self._residual = self._residual_base = None
        if self._folder is not None and named is not None:
            with self._state_errors():
                self._commit(self._folder, replace(self._record, residual=None))

    def restore(self, parameters: int) -> None:
        """Go on with what an earlier process carried of a model of so many parameters; later calls change nothing.

        What is damaged is told of and dropped: it is training that is done again.
        """
        named, self._is_restored, before = self._record.carry, True, self._is_restored
        if before or self._folder is None or named is None:
            return
        try:
            self.carry.take(read_carry(self._folder / named.file.file, named, parameters))
        except StateError as error:
            logger.warning("what was learnt and not sent yet is dropped: %s", error)

    def write(self, sequence: int, frames: Iterable[Part]) -> Payload:
        """Write the payload of an update to `spool`, frame after frame as they are made.

        What `frames` raises is raised on; then, as after a StateError, nothing is left of it.
        """
        if self._folder is None:
            return keep_payload(frames, self._store())
        with self._state_errors():
            return write_payload(self._folder / f"update-{sequence}.bin", frames)

    def spool(self, update: Unsent, residual: Tensor | None, carried: Carried | None = None) -> None:
        """Make an update (with the payload of `write`), its residual and what it leaves to carry durable in one step.

        Args:
            update: The update.
            residual: The residual after it; None keeps the last.
            carried: What is carried after it; None: nothing.

        Raises:
            ValueError: there is an unsent update already.
            StateError: it cannot be written. Nothing has changed, but that the sequence of `update` is used up.
        """
        if self._record.unsent is not None or self._unsent is not None:
            raise ValueError("settle the unsent update before the next")
        if self._folder is not None:
            if update.payload.file is None:
                raise ValueError("the payload was not written to this folder")
            with self._state_errors():
                try:
                    written = finish_update(update.payload.file, update)
                    kept, carry, sequence = self._record.residual, None, update.head.sequence
                    if residual is not None:
                        kept = replace(
                            self._write_vector(self._folder, RESIDUAL, sequence, residual),
                            base=update.head.base_version,
                        )
                    if carried is not None:
                        carry = NamedCarry.of(
                            carried, self._write_vector(self._folder, CARRY, sequence, carried.learnt)
                        )
                    self._commit(self._folder, StateRecord(self._next, written, kept, carry))
                except OSError:
                    self._sweep(self._folder)  # or a full disk fills up with what was tried
                    raise
        self._unsent = update
        if residual is not None:
            self._residual, self._residual_base = residual, update.head.base_version
        self.carry.take(carried)

    def _write_vector(self, folder: Path, name: str, sequence: int, vector: Tensor) -> NamedFile:
        spare = self._spare.pop(name, None)
        over = spare if spare is not None and spare.exists() else None
        return write_vector(folder / f"{name}-{sequence}.safetensors", name, vector, over)

    def settle(self, sequence: int) -> None:
        """The update was acknowledged, or is given up: forget it. Does nothing when it is forgotten already."""
        if self._unsent is None or self._unsent.head.sequence != sequence:
            return
        if self._folder is not None:
            with self._state_errors():
                self._commit(self._folder, replace(self._record, next=self._next, unsent=None))
        self._unsent = None

    def close(self) -> None:
        """Let go of the folder, once a thread that writes to it has ended."""
        with self.mutex:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, folder: Path) -> None:
        old = folder / _OLD_STATE
        self._is_new = not ((folder / _STATE).exists() or old.exists())
        if (folder / _STATE).exists():
            self._record = read_state(folder / _STATE, self._client_id)
        elif old.exists():
            residual = folder / _OLD_RESIDUAL
            kept = NamedFile(residual.name, residual.stat().st_size, None) if residual.exists() else None
            self._record = replace(read_state(old, self._client_id), residual=kept)
        else:
            # A client whose disk was lost must not use a number again, and the log may not know which it has used.
            self._record = StateRecord(secrets.randbelow(_STARTS))
        self._sweep(folder)

    def _commit(self, folder: Path, record: StateRecord) -> None:
        write_state(folder / _STATE, self._client_id, record)
        before, self._record = self._record.files, record
        for name in (RESIDUAL, CARRY):
            if name in before and before[name] != record.files.get(name):
                self._spare[name] = folder / before[name].file
        self._sweep(folder)

    def _sweep(self, folder: Path) -> None:
        """Delete what the state does not name and nothing is to be written over."""
        named = {file.file for file in self._record.files.values()}
        named |= {spare.name for spare in self._spare.values()}
        if not (folder / _STATE).exists():
            named.add(_OLD_STATE)
        with suppress(OSError):  # a leftover costs room and nothing else; the next sweep may do better
            for path in list(folder.iterdir()):
                if _OURS.fullmatch(path.name) and path.name not in named:
                    path.unlink()

    @contextmanager
    def _state_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise StateError(f"client.state_dir: {self._folder} cannot be used: {why}") from error


def _lock(path: Path, client_id: str) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise
        raise StateError(
            f"client {client_id} is running already (its folder {path.parent} is in use); "
            "give this one a client.id of its own"
        ) from None
    return handle
