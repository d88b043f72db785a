"""The files of a client's state folder, written and read (what each holds: see `state`)."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import orjson
from safetensors import SafetensorError
from torch import Tensor

from llmos_stream.codec import check_flat, is_finite
from llmos_stream.errors import Rejected, StateError
from llmos_stream.roles.client.carry import Carried
from llmos_stream.roles.client.state_vectors import NamedFile, read_vector
from llmos_stream.storage import durable
from llmos_stream.storage.durable import DurableFile, FileParts
from llmos_stream.storage.spool import spooled
from llmos_stream.types import Part, UpdateHead
from llmos_stream.wire import MAX_PRELUDE_BYTES, MAX_SIGNATURE_BYTES, Store, payload_digest, unpack_prelude

UNSENT, RESIDUAL, CARRY = "unsent", "residual", "carry"
_HEADER_BYTES = 256
_DAMAGE = (SafetensorError, KeyError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Payload:
    """The payload of an update. `parts` may be walked any number of times: of `file`, or in memory where it is None."""

    parts: Iterable[Part]
    size: int
    digest: bytes
    file: DurableFile | None = None


@dataclass(frozen=True, slots=True)
class Unsent:
    """An update that is durable and not acknowledged yet. The times are unknown after a restart."""

    head: UpdateHead
    prelude: bytes
    payload: Payload
    train_seconds: float | None = None
    encode_seconds: float | None = None

    @property
    def parts(self) -> Iterable[Part]:
        """The payload's parts, which may be walked any number of times. Walking raises StateError when it cannot."""
        return self.payload.parts

    @property
    def sent_bytes(self) -> int:
        """Bytes of the whole message."""
        return len(self.prelude) + self.head.payload_size


@dataclass(frozen=True, slots=True)
class NamedCarry:
    """The file of a carry, and what it is (see `carry.Carried`; digests in hex)."""

    file: NamedFile
    fragments: tuple[str, ...]
    unsent: tuple[int, ...]
    base: int

    @classmethod
    def of(cls, carried: Carried, file: NamedFile) -> Self:
        """The carry that this file holds."""
        return cls(file, tuple(digest.hex() for digest in carried.fragments), carried.unsent, carried.base)


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What `state.json` says, next to the client's name."""

    next: int
    unsent: NamedFile | None = None
    residual: NamedFile | None = None
    carry: NamedCarry | None = None

    @property
    def files(self) -> Mapping[str, NamedFile]:
        """The files that it names, by what they hold."""
        named = {UNSENT: self.unsent, RESIDUAL: self.residual, CARRY: None if self.carry is None else self.carry.file}
        return {what: file for what, file in named.items() if file is not None}


def write_state(path: Path, client_id: str, record: StateRecord) -> None:
    """Replace the state file."""
    named: dict[str, object] = {UNSENT: None, RESIDUAL: None}
    named |= {what: _described(file) for what, file in record.files.items()}
    if (carry := record.carry) is not None:
        more = {"fragments": carry.fragments, "unsent": carry.unsent, "base": carry.base}
        named[CARRY] = {**_described(carry.file), **more}
    durable.replace(path, orjson.dumps({"client_id": client_id, "next": record.next, **named}))


def _described(file: NamedFile) -> dict[str, object]:
    return {key: value for key, value in asdict(file).items() if value is not None or key == "digest"}


def read_state(path: Path, client_id: str) -> StateRecord:
    """Raises StateError where the file is damaged or another client's."""
    try:
        found = orjson.loads(path.read_bytes())
        owner, following = found["client_id"], _number(found["next"])
        unsent = _file(found.get(UNSENT), r"update-\d+\.bin")
        residual = _file(found.get(RESIDUAL), r"residual(-\d+)?\.safetensors")
        carry = _carry(found.get(CARRY))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it to start with new sequence numbers, "
            "without the update that waits, error feedback's memory and what was learnt and not sent yet"
        ) from error
    if owner != client_id:
        raise StateError(f"{path} belongs to client {owner}; set client.state_dir or client.id")
    return StateRecord(following, unsent, residual, carry)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError("not a number from 0 up")
    return value


def _file(value: object, name: str) -> NamedFile | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value["file"], str) or not re.fullmatch(name, value["file"]):
        raise ValueError("names no file of a state folder")
    digest = value["digest"]
    if digest is not None and not isinstance(digest, str):
        raise ValueError("a digest must be text")
    payload = value.get("payload")
    base = value.get("base")
    return NamedFile(
        value["file"],
        _number(value["size"]),
        digest,
        None if payload is None else _number(payload),
        None if base is None else _number(base),
    )


def _carry(value: object) -> NamedCarry | None:
    if (file := _file(value, r"carry-\d+\.safetensors")) is None or not isinstance(value, dict):
        return None
    fragments, unsent = tuple(value["fragments"]), tuple(map(_number, value["unsent"]))
    if len(unsent) != len(fragments) or not all(isinstance(digest, str) for digest in fragments):
        raise ValueError("its fragments are none")
    return NamedCarry(file, fragments, unsent, _number(value["base"]))


def write_payload(path: Path, frames: Iterable[Part]) -> Payload:
    """Write the frames into a new file as they are made. What they raise is raised on, and the file is gone."""
    digest = sha256()
    file = DurableFile.create(path)
    try:
        for frame in frames:
            file.write(frame)
            digest.update(frame)
    except Exception:
        with suppress(OSError):
            path.unlink()
        raise
    return Payload(FileParts(file, 0, file.size), file.size, digest.digest(), file)


def keep_payload(frames: Iterable[Part], store: Store) -> Payload:
    """The same in a store that no restart survives."""
    return Payload(*spooled(frames, store))


def finish_update(file: DurableFile, update: Unsent) -> NamedFile:
    """Add the prelude to the payload's file, and have both on the disk."""
    payload = file.size
    file.write(update.prelude)
    file.sync()
    return NamedFile(file.path.name, file.size, sha256(update.prelude).hexdigest(), payload)


def read_update(path: Path, named: NamedFile, client_id: str) -> Unsent:
    """Raises StateError where the file is damaged."""
    try:
        return _checked_update(path, named, client_id)
    except (OSError, ValueError, Rejected) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to go on without that update") from error


def _checked_update(path: Path, named: NamedFile, client_id: str) -> Unsent:
    file = DurableFile.open(path)
    if file.size != named.size:
        raise ValueError(f"{file.size} bytes, not {named.size}")
    # A release before this one wrote the prelude first.
    at = named.payload or 0
    data = file.read(min(max(file.size - at, 0), MAX_PRELUDE_BYTES + MAX_SIGNATURE_BYTES), at)
    prelude = unpack_prelude(data)
    if prelude is None or sha256(data[: prelude.size]).hexdigest() != named.digest:
        raise ValueError("not the message that was written")
    head = prelude.head
    if not isinstance(head, UpdateHead) or head.client_id != client_id:
        raise ValueError("not an update of this client")
    if file.size != prelude.size + head.payload_size:
        raise ValueError("not the size that its head names")
    parts = FileParts(file, prelude.size if named.payload is None else 0, head.payload_size)
    if payload_digest(parts) != head.payload_digest:
        raise ValueError("the payload does not match its digest")
    return Unsent(head, data[: prelude.size], Payload(parts, head.payload_size, head.payload_digest, file))


def read_residual(path: Path, named: NamedFile) -> Tensor:
    """Raises StateError where the file is damaged."""
    try:
        return read_vector(path, RESIDUAL, named)
    except _DAMAGE as error:
        raise StateError(f"{path} is damaged ({error}); delete it to go on without error feedback's memory") from error


def read_carry(path: Path, named: NamedCarry, parameters: int) -> Carried:
    """The carry of a model of so many parameters. Raises StateError where it is of another one, or damaged."""
    try:
        if named.file.size > 4 * parameters + _HEADER_BYTES:
            raise ValueError(f"{named.file.size} bytes, for a model of {parameters} parameters")
        learnt = check_flat(read_vector(path, CARRY, named.file), parameters)
        if not is_finite(learnt):
            raise ValueError("it holds NaN or infinity")
        return Carried(learnt, tuple(map(bytes.fromhex, named.fragments)), named.unsent, named.base)
    except _DAMAGE as error:
        raise StateError(f"{path} is damaged, or of another model ({error})") from error
