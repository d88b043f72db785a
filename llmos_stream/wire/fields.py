"""Reading a head field by field: the msgpack limits, and one check for each type of field.

Every check takes the fields and a key, returns the value with its Python type, and raises
Rejected(MALFORMED) for a missing key, a wrong type or a value out of range. A msgpack bool is
never an integer here.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn, TypeGuard

import msgpack  # type: ignore[import-untyped]

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Number

Fields = Mapping[str, object]

MAX_INT = 2**63 - 1
MAX_TIME_MS = 253_402_300_799_999  # the last millisecond of the year 9999, the last that dates can show
MAX_NAME_CHARS = 64
MAX_TENSOR_NAME_CHARS = 512
MAX_MAP_ENTRIES = 64
MAX_ARRAY_ITEMS = 64
MAX_STRING_BYTES = 4096
MAX_NESTING = 8
DIGEST_BYTES = 32

_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def malformed(detail: str) -> Rejected:
    """The refusal of bytes that are not of this protocol, ready to be raised."""
    return Rejected(Reason.MALFORMED, detail)


def read_fields(data: memoryview, known: Collection[str], lists: Collection[str] = ()) -> dict[str, object]:
    """The known fields of one msgpack map that fills `data`; unknown keys are skipped unread.

    Fields in `lists` may be arrays of any length, read item by item. Every other array or map, at
    any depth, has at most 64 entries: msgpack allocates an array by the length it claims, and this
    keeps the worst nest of claims within half a mebibyte.
    """
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=max(len(data), 1),  # 0 would mean no limit
        max_str_len=MAX_STRING_BYTES,
        max_bin_len=DIGEST_BYTES,
        max_array_len=MAX_ARRAY_ITEMS,
        max_map_len=MAX_MAP_ENTRIES,
        max_ext_len=0,
    )
    unpacker.feed(data)
    fields: dict[str, object] = {}
    try:
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if not isinstance(key, str):
                raise malformed("a key of the head is not a string")
            if key not in known:
                unpacker.skip()
            elif key in fields:
                raise malformed(f"the head names {key} twice")
            elif key in lists:
                fields[key] = [unpacker.unpack() for _ in range(unpacker.read_array_header())]
            else:
                fields[key] = unpacker.unpack()
    except msgpack.OutOfData:
        raise malformed("the head ends inside a field") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise malformed(f"the head is not msgpack within its limits: {str(error)[:200] or 'bad format'}") from None
    if unpacker.tell() != len(data):
        raise malformed("bytes follow the head's map")
    return fields


def row(item: object, names: Sequence[str], what: str, *more: str) -> dict[str, object]:
    """An array in a fixed order, as fields; `more` may be missing. Further items are ignored, as unknown keys are."""
    if not isinstance(item, list) or len(item) < len(names):
        raise malformed(f"an entry of {what} is not an array of {len(names)} or more")
    return dict(zip((*names, *more), item, strict=False))


def integer(fields: Fields, key: str, low: int = -(2**63), high: int = MAX_INT) -> int:
    """An integer from `low` to `high`."""
    value = fields.get(key)
    if type(value) is not int or not low <= value <= high:
        _wrong(key, value, f"an integer from {low} to {high}")
    return value


def count(fields: Fields, key: str) -> int:
    """An integer from 0 up."""
    return integer(fields, key, low=0)


def finite(fields: Fields, key: str) -> float:
    """A finite number."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _wrong(key, value, "a finite number")
    return float(value)


def digest(fields: Fields, key: str) -> bytes:
    """The bytes of a digest."""
    value = fields.get(key)
    if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
        _wrong(key, value, f"a digest of {DIGEST_BYTES} bytes")
    return value


def name(fields: Fields, key: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """A printable name of 1 to `max_chars` characters."""
    value = fields.get(key)
    if not _is_name(value, max_chars):
        _wrong(key, value, f"a printable name of 1 to {max_chars} characters")
    return value


def is_client_id(value: object) -> TypeGuard[str]:
    """Whether it is of the form that a client's id has."""
    return isinstance(value, str) and _CLIENT_ID.fullmatch(value) is not None


def client_id(fields: Fields, key: str) -> str:
    """A client id."""
    value = fields.get(key)
    if not is_client_id(value):
        _wrong(key, value, "a client id (1 to 128 of A-Z a-z 0-9 . _ -, a letter or digit first)")
    return value


def items(fields: Fields, key: str) -> list[object]:
    """An array; empty where the field is missing."""
    value = fields.get(key, [])
    if not isinstance(value, list):
        _wrong(key, value, "an array")
    return value


def numbers(fields: Fields, key: str, max_entries: int) -> dict[str, Number]:
    """A map of names to integers and floats, finite or not; empty where the field is missing."""
    found: dict[str, Number] = {}
    for inner, value in _mapping(fields, key, max_entries).items():
        if not _is_name(inner, MAX_NAME_CHARS):
            raise malformed(f"{key} has a name that is not 1 to {MAX_NAME_CHARS} printable characters")
        if type(value) is float:
            found[inner] = value
        else:
            found[inner] = integer({f"{key}.{inner}": value}, f"{key}.{inner}")
    return found


def strings(fields: Fields, key: str) -> dict[str, str]:
    """A map of strings to strings; empty where the field is missing."""
    found: dict[str, str] = {}
    for inner, value in _mapping(fields, key, MAX_MAP_ENTRIES).items():
        if not isinstance(value, str):
            _wrong(key, value, "a map of strings to strings")
        found[inner] = value
    return found


def plain(fields: Fields, key: str) -> dict[str, object]:
    """A map of what JSON can say (finite numbers, at most 8 levels); empty where the field is missing."""
    found = _mapping(fields, key, MAX_MAP_ENTRIES)
    _require_plain(found, key, MAX_NESTING)
    return found


def _mapping(fields: Fields, key: str, max_entries: int) -> dict[str, object]:
    value = fields.get(key, {})
    if not isinstance(value, dict) or len(value) > max_entries or not all(isinstance(inner, str) for inner in value):
        _wrong(key, value, f"a map of at most {max_entries} strings to values")
    return value


def _require_plain(value: object, what: str, levels: int) -> None:
    if levels < 0:
        raise malformed(f"{what} is nested deeper than {MAX_NESTING} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise malformed(f"{what} has a key that is not a string")
            _require_plain(inner, what, levels - 1)
    elif isinstance(value, list):
        for inner in value:
            _require_plain(inner, what, levels - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise malformed(f"{what} holds a number that is not finite")
    elif not (value is None or isinstance(value, bool | int | str)):
        raise malformed(f"{what} holds a {type(value).__name__}, which JSON cannot say")


def _is_name(value: object, max_chars: int) -> TypeGuard[str]:
    """Printable, so that a name cannot steer the terminal it is shown on."""
    return isinstance(value, str) and 0 < len(value) <= max_chars and value.isprintable()


def _wrong(key: str, value: object, wanted: str) -> NoReturn:
    if value is None:
        shown = "missing or nil"
    elif isinstance(value, bool | int | float):
        shown = str(value)
    else:
        shown = f"a {type(value).__name__} of {len(value)}" if isinstance(value, bytes | list | dict | str) else "odd"
    raise malformed(f"{key} is {shown}, not {wanted}")
