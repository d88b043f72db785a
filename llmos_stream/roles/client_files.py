"""The files of a client's state folder, written and read (what each holds: see `client_state`)."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmos_stream.codec import payload_digest, weights_digest
from llmos_stream.errors import Rejected, StateError
from llmos_stream.roles import durable
from llmos_stream.types import Part, UpdateHead
from llmos_stream.wire import unpack_prelude

_RESIDUAL = "residual"


@dataclass(frozen=True, slots=True)
class Unsent:
    """An update that is durable and not acknowledged yet. The times are unknown after a restart."""

    head: UpdateHead
    prelude: bytes
    parts: Sequence[Part]
    train_seconds: float | None = None
    encode_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the state names. No digest: of the first release."""

    file: str
    size: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What `state.json` says, next to the client's name."""

    next: int
    unsent: NamedFile | None = None
    residual: NamedFile | None = None


def write_state(path: Path, client_id: str, record: StateRecord) -> None:
    """Replace the state file."""
    durable.replace(path, orjson.dumps({"client_id": client_id, **asdict(record)}))


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
    return NamedFile(value["file"], _number(value["size"]), digest)


def write_update(path: Path, update: Unsent) -> NamedFile:
    durable.write_parts(path, [update.prelude, *update.parts])
    return NamedFile(path.name, len(update.prelude) + update.head.payload_size, sha256(update.prelude).hexdigest())


def read_update(path: Path, named: NamedFile, client_id: str) -> Unsent:
    """Raises StateError where the file is damaged."""
    try:
        return _checked_update(path, named, client_id)
    except (OSError, ValueError, Rejected) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to go on without that update") from error


def _checked_update(path: Path, named: NamedFile, client_id: str) -> Unsent:
    data = memoryview(path.read_bytes())
    if len(data) != named.size:
        raise ValueError(f"{len(data)} bytes, not {named.size}")
    prelude = unpack_prelude(data)
    if prelude is None or sha256(data[: prelude.size]).hexdigest() != named.digest:
        raise ValueError("not the message that was written")
    head, payload = prelude.head, data[prelude.size :]
    if not isinstance(head, UpdateHead) or head.client_id != client_id:
        raise ValueError("not an update of this client")
    if len(payload) != head.payload_size or payload_digest([payload]) != head.payload_digest:
        raise ValueError("the payload does not match its digest")
    return Unsent(head, bytes(data[: prelude.size]), [payload])


def write_residual(path: Path, residual: Tensor) -> NamedFile:
    durable.write_tensor(path, _RESIDUAL, residual)
    return NamedFile(path.name, path.stat().st_size, weights_digest(residual).hex())


def read_residual(path: Path, named: NamedFile) -> Tensor:
    """Raises StateError where the file is damaged."""
    try:
        return _checked_residual(path, named)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to go on without error feedback's memory") from error


def _checked_residual(path: Path, named: NamedFile) -> Tensor:
    if (size := path.stat().st_size) != named.size:
        raise ValueError(f"{size} bytes, not {named.size}")
    residual = load_file(path)[_RESIDUAL]
    if named.digest is not None and weights_digest(residual).hex() != named.digest:
        raise ValueError("the elements do not match their digest")
    return residual
