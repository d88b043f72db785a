"""What can go wrong between a request and its answer."""

from llmos_stream.errors import LlmosError


class BadInput(LlmosError):
    """A request's inputs are not what the model takes; the message says what was expected."""


class Busy(LlmosError):
    """As much waits as may; ask again in a moment."""

    retriable = True


class PredictionFailed(LlmosError):
    """The model did not give an answer; the message names the version."""


class NotHeld(LlmosError):
    """No version of that number is held, or none to go back to."""
