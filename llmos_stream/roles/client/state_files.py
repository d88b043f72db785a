"""The files of a client's state folder, written and read (what each holds: see `state`)."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmos_stream.codec import weights_digest
from llmos_stream.errors import Rejected, StateError
from llmos_stream.storage import durable
from llmos_stream.storage.durable import DurableFile, FileParts
from llmos_stream.storage.spool import spooled
from llmos_stream.types import Part, UpdateHead
from llmos_stream.wire import MAX_PRELUDE_BYTES, MAX_SIGNATURE_BYTES, Store, payload_digest, unpack_prelude

_RESIDUAL = "residual"
_SUMS = "sums:"
_SUMMED = 8192  # bytes, so that a page of the disk that is not the newest spoils the sum of one or two blocks


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
class NamedFile:
    """A file that the state names (see `state`). No digest: of the first release."""

    file: str
    size: int
    digest: str | None
    payload: int | None = None


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What `state.json` says, next to the client's name."""

    next: int
    unsent: NamedFile | None = None
    residual: NamedFile | None = None


def write_state(path: Path, client_id: str, record: StateRecord) -> None:
    """Replace the state file."""
    files = {"unsent": record.unsent, "residual": record.residual}
    named = {
        name: file and {key: value for key, value in asdict(file).items() if value is not None or key == "digest"}
        for name, file in files.items()
    }
    durable.replace(path, orjson.dumps({"client_id": client_id, "next": record.next, **named}))


def read_state(path: Path, client_id: str) -> StateRecord:
    """Raises StateError where the file is damaged or another client's."""
    try:
        found = orjson.loads(path.read_bytes())
        owner, following = found["client_id"], _number(found["next"])
        unsent = _file(found.get("unsent"), r"update-\d+\.bin")
        residual = _file(found.get("residual"), r"residual(-\d+)?\.safetensors")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it to start with new sequence numbers, "
            "without the update that waits and without error feedback's memory"
        ) from error
    if owner != client_id:
        raise StateError(f"{path} belongs to client {owner}; set client.state_dir or client.id")
    return StateRecord(following, unsent, residual)


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
    return NamedFile(value["file"], _number(value["size"]), digest, None if payload is None else _number(payload))


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


def write_residual(path: Path, residual: Tensor, over: Path | None) -> NamedFile:
    """Write a safetensors file of one tensor, straight from its memory; in the place of `over`, where given."""
    elements = _bytes_of(residual)
    entry = {"dtype": "F32", "shape": list(residual.shape), "data_offsets": [0, len(elements)]}
    header = orjson.dumps({_RESIDUAL: entry})
    header += b" " * (-len(header) % 8)
    file = DurableFile.create(path, over)
    file.write(len(header).to_bytes(8, "little") + header)
    file.write(elements)
    file.sync()
    return NamedFile(path.name, file.size, _sums(residual))


def _bytes_of(flat: Tensor) -> Part:
    elements = flat.detach().numpy()
    elements = elements.astype(elements.dtype.newbyteorder("<"), copy=False)
    return elements.data.cast("B") if elements.size else b""  # an empty view cannot be cast


def read_residual(path: Path, named: NamedFile) -> Tensor:
    """Raises StateError where the file is damaged."""
    try:
        return _checked_residual(path, named)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to go on without error feedback's memory") from error


def _checked_residual(path: Path, named: NamedFile) -> Tensor:
    if (size := path.stat().st_size) != named.size:
        raise ValueError(f"{size} bytes, not {named.size}")
    residual = load_file(path)[_RESIDUAL].clone()  # for the file may be written over, and is mapped
    if named.digest is not None and _digest_like(named.digest, residual) != named.digest:
        raise ValueError("the elements do not match their digest")
    return residual


def _digest_like(digest: str, residual: Tensor) -> str:
    # SHA-256, of a release before this one, took as long as half of the encoding.
    return _sums(residual) if digest.startswith(_SUMS) else weights_digest(residual).hex()


def _sums(residual: Tensor) -> str:
    """CRC-32 of the 64-bit sums of blocks, and of the elements after the last whole one: a tenth of CRC-32's time."""
    elements = _bytes_of(residual)
    whole = len(elements) // _SUMMED * _SUMMED
    blocks = residual.detach()[: whole // 4].view(torch.int64).view(-1, _SUMMED // 8)
    sums = blocks.sum(dim=1)  # of 64-bit integers: they wrap around
    return f"{_SUMS}{crc32(elements[whole:], crc32(_bytes_of(sums))):08x}"
