"""What the sections of the settings share: base class, ranges of fields, and messages for wrong values."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, SecretStr, ValidationError

from llmos_stream.config.names import did_you_mean

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
MOST = 2**63 - 1
"""The largest integer that ranges, PyTorch and the wire can carry."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
"""A count that may be nothing."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def power_of_two(value: int) -> int:
    """Return `value`; raise ValueError unless it is a power of two."""
    if value & (value - 1):
        raise ValueError(f"{value} is not a power of two")
    return value


def none_where_empty(token: SecretStr | None) -> SecretStr | None:
    """None for an empty token: a variable that is set to nothing must not become a token that anybody can guess."""
    return token if token is not None and token.get_secret_value() else None


def no_secret(value: str) -> str:
    """Return the URL `value`, which is printed and logged; raise ValueError if it carries a user or a query."""
    # fsspec chains URLs, as in simplecache::https://host/path.
    for part in value.split("::"):
        url = urlsplit(part)
        if "@" in url.netloc:
            raise ValueError("leave user and password out of it; give them as the store's own variables or files")
        if url.scheme and url.scheme != "file" and (url.query or url.fragment):
            raise ValueError("leave out what follows ? or #; give a token as the store's own variables or files")
    return value


_USER_INFO = re.compile(r"(?<=:/)(/*)\S*@")
_SECRET = re.compile(
    r"(\b[\w.-]*(?:pass?w|pass\b|pwd|passphrase|token|secret|key|signature|credential|\bsig)[\w.-]*\s*=\s*)"
    r"('[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` without what may be a secret in a URI or a DSN: user and password, and values of what sounds like one."""
    return _SECRET.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def expanded(path: Path) -> Path:
    """`path` with `~` and `~user` as the folders that they stand for. Raises ValueError where nobody knows those."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"nobody here knows the home folder of {path.parts[0]}; write the path in full") from None


def host_name(host: str) -> str:
    """`host` without blanks, and the brackets of an IPv6 address, around it; ValueError if it is no name or address."""
    host = host.strip()
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    try:
        sound = re.fullmatch(r"[^\s/@,;?#\[\]]+", host) and host.encode("idna")
    except UnicodeError:
        sound = None
    if not sound:
        raise ValueError(f"{host!r} is no host name or address")
    return host


Source = Annotated[str, PlainSerializer(redacted, return_type=str, when_used="json")]
"""Where data are. It may hold a password, so what is made to be read has it redacted."""
FilePath = Annotated[Path, AfterValidator(expanded)]
Host = Annotated[str, AfterValidator(host_name)]


def explain(error: ValidationError, known: Iterable[str] | None = None) -> str:
    """One line a wrong field: its dotted name and the reason, without the value (it may be secret).

    Where the fields are settings, `known` are their names: for one that there is not, it says which comes near.
    """
    lines = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"])
        match item["type"]:
            case "extra_forbidden" if known is not None:
                reason = f"there is no such setting{did_you_mean(name, known)}"
            case "model_type" if known is not None:
                reason = "this is a section, which takes its settings by name"
            case "string_pattern_mismatch" if NAME_PATTERN in item["msg"]:
                reason = "1 to 128 ASCII letters, digits, dots, underscores and hyphens; the first a letter or a digit"
            case _:
                reason = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {reason}" if name else reason)
    return "\n".join(lines)
