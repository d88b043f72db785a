"""Values of a head in words."""

from collections.abc import Mapping

from llmos_stream.reporting.wording import plain


def told(value: object) -> str:
    """A value on one line; a section of settings as `name=value` pairs."""
    if not isinstance(value, Mapping):
        return plain(str(value))
    return ", ".join(
        f"{name} ({told(inner)})" if isinstance(inner, Mapping) else f"{name}={told(inner)}"
        for name, inner in value.items()
    )
