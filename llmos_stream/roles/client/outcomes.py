"""What became of a client's updates, as the log says it: folded, dropped as a repeat, or refused and why.

With each version the aggregator writes to the control topic which sequences of a client it has folded (`core.dedup`);
the manifests of versions name the payloads, and what it refuses goes to quarantine. A client whose updates do not count
hears so within a minute.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from llmos_stream.core.client_sequences import FURTHEST_AHEAD
from llmos_stream.core.dedup import WINDOW, SequenceWindow
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.types import UpdateHead, VersionHead

logger = logging.getLogger(__name__)

_OVERDUE_SECONDS = 30.0
_SILENT_SECONDS = 10.0
_AGAIN_SECONDS = 60.0
_IN_A_ROW = 3
_REMEMBERED = 2 * WINDOW


class _Sent(NamedTuple):
    digest: bytes
    at: float


class Outcomes:
    """Counts a client's updates by what became of them, and says what it has to be told."""

    def __init__(self, client_id: str) -> None:
        self.counted = 0
        """How many updates of this process were folded."""
        self.dropped = 0
        """How many were not, and never will be, those included that came too late to be sent."""
        self.why = ""
        """Why the last of those was not."""
        self.window: SequenceWindow | None = None
        self.is_shared = False
        """Whether another process has taken the very sequence of an update of this one, since the last was taken."""
        self.is_lost = False
        """Whether sequences as high as this client's are refused: it goes on from the start, as with a new folder."""
        self.refused_for_room_at: float | None = None
        """When one was last refused because as many others took part as may at once."""
        self._client_id = client_id
        self._own_from: int | None = None
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._waiting: dict[int, _Sent] = {}
        self._said_at: dict[str, float] = {}
        self._in_vain = 0  # updates that were dropped since one was counted
        self._in_vain_since = 0.0

    @property
    def waiting(self) -> int:
        """How many updates were sent of which nothing is known yet."""
        return len(self._waiting)

    def summary(self) -> dict[str, int | str]:
        """The numbers, and why an update does not count where one does not."""
        known: dict[str, int | str] = {"counted": self.counted, "dropped": self.dropped, "waiting": self.waiting}
        return {**known, "why": self.why} if self.why else known

    def begin(self, numbers: Sequence[int] | None, following: int) -> None:
        """Note which sequences were folded before this process sends, and which one it would take first."""
        if self._own_from is None:
            self.window, self._own_from = _window_of(numbers), following

    def sent(self, head: UpdateHead, now: float) -> None:
        """The log has acknowledged an update."""
        self.sending(head, now)
        self._waiting[head.sequence] = self._sent[head.sequence]

    def sending(self, head: UpdateHead, now: float) -> None:
        """An update is being sent while the client listens: it may be folded before its acknowledgement is seen."""
        self._sent[head.sequence] = _Sent(head.payload_digest, now)
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)

    def take_window(self, numbers: Sequence[int], now: float) -> None:
        """The aggregator says what it has folded of this client."""
        if (window := _window_of(numbers)) is None:
            return
        before, self.window = self.window, window
        for sequence in [sequence for sequence in self._waiting if window.seen(sequence)]:
            del self._waiting[sequence]
            if window.highest - sequence < WINDOW:
                self.counted += 1
                self._in_vain = 0
                logger.debug("update %d counts, in version %d", sequence, window.version + 1)
            else:
                self._drop(sequence, "duplicate: the federation has folded much higher sequences of this client")
        others = [sequence for sequence in _news(window, before) if self._is_foreign(sequence)]
        if others:
            self._meet(others[0], now)

    def take_manifest(self, head: VersionHead, now: float) -> None:
        """A version names the payloads that it was made of."""
        for item in head.manifest:
            own = self._sent.get(item.sequence) if item.client_id == self._client_id else None
            if own is not None and own.digest != item.payload_digest:
                if self._waiting.pop(item.sequence, None) is None:
                    self.counted -= 1  # it was the other one's that counted
                del self._sent[item.sequence]
                self._drop(item.sequence, "duplicate: another update of that client and sequence was folded")
                self.is_shared = True
                self._meet(item.sequence, now)

    def take_refusal(self, value: bytes, now: float) -> None:
        """The aggregator has put an update of somebody into quarantine."""
        try:
            entry = orjson.loads(value)
            head = entry["head"]
            if head["client_id"] != self._client_id:
                return
            if self._waiting.pop(head["sequence"], None) is None:
                if entry["reason"] == Reason.SEQUENCE_AHEAD and head["sequence"] not in self._sent:
                    self._meet(head["sequence"], now)
                return
            self._drop(head["sequence"], f"{entry['reason']}: {entry['detail']}")
            if entry["reason"] == Reason.TOO_MANY_CLIENTS:
                self.refused_for_room_at = now
            if entry["reason"] == Reason.SEQUENCE_AHEAD:
                self.is_lost = True
                if self.window is not None and head["sequence"] - self.window.highest <= FURTHEST_AHEAD:
                    self.window = None  # the aggregator has another
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return  # what nobody of this federation wrote, or the refusal of what has no head

    def give_up(self, error: Rejected) -> None:
        """An update was not sent, because it could not count any more."""
        self._note_dropped(f"{error.reason}: {error.detail}")

    def look(self, now: float, leader_silent: float) -> None:
        """Say what is wrong while nothing comes: for so many seconds no aggregator was heard."""
        if not self._in_vain:
            self._in_vain_since = now
        elif self._in_vain >= _IN_A_ROW or now - self._in_vain_since >= _OVERDUE_SECONDS:
            self._say(
                "in vain",
                now,
                f"none of the last {self._in_vain} updates of this client counts, so what it learns does not reach the "
                f"model; the last was refused as {self.why}",
            )
        oldest = min((sent.at for sent in self._waiting.values()), default=now)
        if leader_silent >= _SILENT_SECONDS:
            self._say(
                "silent", now, f"no aggregator has been heard for {leader_silent:.0f} s; what is sent waits in the log"
            )
        elif now - oldest >= _OVERDUE_SECONDS:
            self._say(
                "overdue",
                now,
                f"nothing is known of {self.waiting} updates, the oldest sent {now - oldest:.0f} s ago: "
                "the aggregator waits for more updates, or is busy",
            )

    def _is_foreign(self, sequence: int) -> bool:
        return sequence not in self._sent and self._own_from is not None and sequence >= self._own_from

    def _meet(self, sequence: int, now: float) -> None:
        self._say(
            "shared",
            now,
            f"update {sequence} of client {self._client_id} was not sent by this process: "
            "another one sends under that name, or did until now; give each a client.id of its own",
        )

    def _drop(self, sequence: int, why: str) -> None:
        self._note_dropped(why)
        logger.warning("update %d does not count: %s", sequence, why)

    def _note_dropped(self, why: str) -> None:
        self.dropped += 1
        self.why = why
        self._in_vain += 1

    def _say(self, about: str, now: float, text: str) -> None:
        if now - self._said_at.get(about, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
            self._said_at[about] = now
            logger.warning("%s", text)


def _window_of(numbers: Sequence[int] | None) -> SequenceWindow | None:
    try:
        return None if numbers is None else SequenceWindow.load(numbers)
    except StateError:
        return None


def _news(window: SequenceWindow, before: SequenceWindow | None) -> list[int]:
    """The sequences of `window` that were not folded `before`, the highest first."""
    folded = [window.highest - age for age in range(min(WINDOW, window.highest + 1)) if window.bits >> age & 1]
    return folded if before is None else [sequence for sequence in folded if not before.seen(sequence)]
