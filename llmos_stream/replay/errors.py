"""What keeps something from being replayed."""

from llmos_stream.errors import LlmosError


class Missing(LlmosError):
    """What a replay needs is not in the log, or is not what was recorded. The message says exactly what."""


class UpdateMissing(Missing):
    """An update that a manifest names. `gone`: retention has deleted it; else something else is in its place."""

    def __init__(self, detail: str, *, gone: bool) -> None:
        super().__init__(detail)
        self.gone = gone
