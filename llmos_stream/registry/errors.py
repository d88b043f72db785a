"""What can be wrong with the registry, beside its settings."""

from typing import ClassVar

from llmos_stream.errors import LlmosError


class StoreUnavailable(LlmosError):
    """The directory or object store of the registry did not take or give something; it may later."""

    retriable: ClassVar[bool] = True


class NotArchived(LlmosError):
    """The registry does not hold this version."""


class Damaged(LlmosError):
    """What the registry holds of a version is not what was archived."""
