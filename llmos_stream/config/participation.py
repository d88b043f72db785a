"""Who takes part in a federation."""

import re
from typing import Annotated

from pydantic import AfterValidator

from llmos_stream.config.base import Count, Section

_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,128}")
_MOST = 1000


def _patterns(text: str) -> str:
    found = [part.strip() for part in text.split(",")]
    if len(found) > _MOST or not all(map(_PATTERN.fullmatch, found)):
        raise ValueError(f"ids and globs such as ward-*, with commas, at most {_MOST}")
    return ",".join(found)


class ParticipationSettings(Section):
    clients: Annotated[str, AfterValidator(_patterns)] = "*"
    """Which clients take part: ids and globs such as ward-*, with commas. *: all."""
    at_once: Count | None = None
    """At most so many clients take part at the same time: the first to come, until they fall silent. Unset: all."""
    min_examples: Count = 1
    """An update of fewer examples is refused."""
