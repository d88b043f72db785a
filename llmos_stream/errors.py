"""The error tree. Retry loops read `retriable` and nothing else.

Every error says what happened and, where there is one, the next step to take.
"""

from enum import StrEnum, unique
from typing import ClassVar


class LlmosError(Exception):
    """Root of every error this package raises on purpose."""

    retriable: ClassVar[bool] = False


def install(extra: str) -> str:
    """How to install one of the package's extras: from its source, since no index has it."""
    return f"install it from the clone: pip install -e '.[{extra}]'"


class ConfigError(LlmosError):
    """A setting makes no sense; the message names the field and the reason."""


class NotFound(LlmosError):
    """What was asked for, such as a version, is not there; the message says what is."""


class TaskError(LlmosError):
    """The model or the data a role was told to use cannot be loaded."""


class StateError(LlmosError):
    """A state file on disk is damaged or belongs to another client or model."""


class BrokerError(LlmosError):
    """Something between this process and the log went wrong."""


class BrokerUnavailable(BrokerError):
    """No broker answered; the message names the address and what to check."""

    retriable = True


class TransactionAborted(BrokerError):
    """A transaction did not commit; nothing in it is visible to readers."""

    retriable = True


class Fenced(BrokerError):
    """A newer producer with the same transactional id has taken over."""


class TopicMissing(BrokerError):
    """A topic does not exist, or is no longer the one that was read (see `llmos-stream topics create`)."""


class TopicChanged(BrokerError):
    """A topic has more partitions than those who read it know of; they begin again."""

    retriable = True


class RecordTooLarge(BrokerError):
    """A record exceeds the limit of the topic; chunks must be made smaller."""


class OffsetGone(BrokerError):
    """The offset asked for has been deleted by retention or never existed."""


class FederationFinished(LlmosError):
    """The run has ended, so no update is taken any more."""


class NotWanted(LlmosError):
    """The operator does not want this client to take part; the message says why."""


class Closed(LlmosError):
    """Used after it was closed."""


@unique
class Reason(StrEnum):
    """Why an update was refused. The closed table that quarantine and metrics use."""

    MALFORMED = "malformed"  # not a frame or a chunk of this protocol
    UNSUPPORTED = "unsupported"  # a frame of a newer protocol version or of another kind
    TRUNCATED = "truncated"  # fewer payload bytes than the head names
    MISSING_CHUNK = "missing_chunk"  # a gap in the chunks of one message
    INCOMPLETE = "incomplete"  # the rest did not come before the deadline
    TOO_LARGE = "too_large"  # the head claims more than the layout can need
    WRONG_LAYOUT = "wrong_layout"
    WRONG_DIGEST = "wrong_digest"
    UNKNOWN_CODEC = "unknown_codec"
    BAD_CODEC_PARAMS = "bad_codec_params"
    CORRUPT_PAYLOAD = "corrupt_payload"
    DECOMPRESSION_BOMB = "decompression_bomb"
    NOT_FINITE = "not_finite"
    BAD_NUM_EXAMPLES = "bad_num_examples"
    WRONG_KEY = "wrong_key"  # the record's key is not the client id in the head
    SEQUENCE_AHEAD = "sequence_ahead"  # so far above the client's last that it could hardly go on after it
    UNKNOWN_BASE_VERSION = "unknown_base_version"
    TOO_STALE = "too_stale"
    ONE_A_ROUND = "one_a_round"  # the version that is being made has an update of this client, and takes one of each
    NOT_WANTED = "not_wanted"  # the operator does not want this client to take part
    TOO_MANY_CLIENTS = "too_many_clients"  # as many others take part as the operator wants at once
    TOO_FEW_EXAMPLES = "too_few_examples"  # fewer than the operator asks for
    UNSAFE_VERSION = "unsafe_version"  # what was made of it and others must not be published


class Rejected(LlmosError):
    """Bad input. It goes to quarantine with this reason and the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
