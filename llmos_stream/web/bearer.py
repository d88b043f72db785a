"""Who may change something over HTTP: whoever brings the token that the process was started with."""

from secrets import compare_digest
from typing import NamedTuple


class Denied(NamedTuple):
    """Why not: an HTTP status, and what to say."""

    status: int
    detail: str


def check_bearer(token: str | None, given: str | None, unset: str) -> Denied | None:
    """None where `given` is `token`; takes as long for a guess that is nearly right as for any other.

    `unset` is said (403) where the process has no token, or an empty one, so that nobody may.
    """
    if not token:
        return Denied(403, unset)
    if not given or not compare_digest(_bytes(given), _bytes(token)):
        return Denied(401, "the token is missing or wrong")
    return None


def bearer_of(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header; None for anything else."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
