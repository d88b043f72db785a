"""The format of `version.json`, which describes an archived version.

format      1
federation  its name
version     the number
head        the version's head with its manifest, as `wire.describe` writes it; digests in hex
layout      [[name, [dimension, ...], dtype], ...], "buffer" as a fourth item where it is one; also where the head is a
            delta's, which has none
tied        each further name of a tied tensor, and its name in the layout; where there are any
model       {"size": bytes, "sha256": hex} of model.safetensors
log         where the version lay in `<f>.models`, as in the control record `latest`
created     time of archiving, ISO 8601
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from llmos_stream.codec import Layout
from llmos_stream.errors import LlmosError, Rejected
from llmos_stream.log import Pointer
from llmos_stream.log.versions import Version
from llmos_stream.wire import describe
from llmos_stream.wire.control import dump_setting, load_latest

_FORMAT = 1
_DIGEST_BYTES = 32


class Damaged(LlmosError):
    """What the registry holds of a version is not what was archived."""


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """A version in the registry. `size` and `sha256` are those of its safetensors file."""

    federation: str
    version: int
    head: Mapping[str, Any]
    layout: Layout
    size: int
    sha256: bytes
    at: Pointer
    created: str

    @property
    def weights_digest(self) -> bytes:
        """SHA-256 of the weights, from the head."""
        return bytes.fromhex(self.head["weights_digest"])

    @property
    def time_ms(self) -> int:
        """Time of the version, in milliseconds since the epoch."""
        return round(datetime.fromisoformat(self.head["time"]).timestamp() * 1000)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of its safetensors file."""
        return file_metadata(self.federation, self.version, self.weights_digest)

    def is_of(self, version: Mapping[str, object]) -> bool:
        """Whether it has this head (as `wire.describe` writes it), and is not a version of another run."""
        return all(self.head.get(name) == version[name] for name in ("number", "time", "weights_digest"))


def file_metadata(federation: str, version: int, weights_digest: bytes) -> dict[str, str]:
    """Return the metadata in the header of a version's safetensors file."""
    return {"federation": federation, "version": str(version), "weights_digest": weights_digest.hex()}


def entry_of(federation: str, version: Version, at: Pointer, size: int, sha256: bytes) -> ArchivedVersion:
    """Describe `version`, which lies at `at` in the log and is archived now."""
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    head = describe(version.head)
    return ArchivedVersion(federation, version.head.number, head, version.layout, size, sha256, at, created)


def dump_entry(entry: ArchivedVersion) -> bytes:
    """Write `version.json`."""
    value = {
        "format": _FORMAT,
        "federation": entry.federation,
        "version": entry.version,
        "head": entry.head,
        "layout": [spec.row for spec in entry.layout.tensors],
        **({"tied": dict(entry.layout.tied)} if entry.layout.tied else {}),
        "model": {"size": entry.size, "sha256": entry.sha256.hex()},
        "log": orjson.Fragment(dump_setting(entry.at)),
        "created": entry.created,
    }
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def load_entry(data: bytes, federation: str, number: int) -> ArchivedVersion:
    """Read `version.json`.

    Raises:
        Damaged: `dump_entry` did not write it for this version.
    """
    try:
        value = orjson.loads(data)
        if value["format"] != _FORMAT:
            raise Damaged(f"version.json is of format {value['format']!r:.20}; this release reads {_FORMAT}")
        head, model = dict(value["head"]), value["model"]
        found = ArchivedVersion(
            federation=str(value["federation"]),
            version=int(value["version"]),
            head=head,
            layout=Layout.from_specs(value["layout"], value.get("tied")),
            size=int(model["size"]),
            sha256=_digest(model["sha256"]),
            at=load_latest(value["log"]),
            created=str(value["created"]),
        )
        if min(found.at.partition, found.at.offset, found.at.beginning.partition, found.at.beginning.offset) < 0:
            raise ValueError("no place in a log")
        _digest(head["weights_digest"])
        _ = found.time_ms
        confirmed = _digest(head["layout_digest"]) == found.layout.digest
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, Rejected) as error:
        raise Damaged(f"version.json cannot be read ({type(error).__name__})") from None
    if (found.federation, found.version, head.get("number")) != (federation, number, number):
        raise Damaged("version.json is that of another version")
    if not confirmed:
        raise Damaged("version.json: the tensors do not match the layout digest")
    return found


def _digest(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != _DIGEST_BYTES:
        raise ValueError("not a SHA-256")
    return digest
