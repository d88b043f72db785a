"""Which updates were folded already, by `(client_id, sequence)`, in bounded memory.

A window for each client, as IPsec's anti-replay window (RFC 4303, appendix A2): the highest sequence
and one bit for each of the last 1024, so that what arrives out of order is counted once, a repeat
never, and what lies below the window counts as a repeat.

A client not heard of for long is forgotten, so that memory does not grow with the clients. An update folded at version
`v` names a base of at most `v`, so every repeat that a client could send is too stale once no update on such a base
counts any more. That is so beyond `staleness.maximum`, and where more than CLIENTS_KEPT clients would be remembered
(about 400 bytes each): then the longest silent ones are forgotten, and from then on all updates on the bases that
theirs could name are refused, whoever sends them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from llmos_stream.errors import StateError

WINDOW = 1024
"""How many sequences, counted down from the highest, can still arrive out of order."""
CLIENTS_KEPT = 1 << 16
_MASK = (1 << WINDOW) - 1
_WORD = 64
_WORD_MASK = (1 << _WORD) - 1
_LONGEST = 2 + WINDOW // _WORD
_HIGHEST = 1 << 62
"""A window above it leaves a client no room: see `client_sequences.check_sequence`, which lets none come near."""


class SequenceWindow:
    """The sequences of one client. Bit `i` of `bits` stands for `highest - i`."""

    __slots__ = ("bits", "highest", "version")

    def __init__(self, highest: int = -1, bits: int = 0, version: int = 0) -> None:
        self.highest = highest
        self.bits = bits
        self.version = version

    def seen(self, sequence: int) -> bool:
        """Whether `sequence` was added, or lies so far below the highest that nobody can tell."""
        age = self.highest - sequence
        return age >= 0 and (age >= WINDOW or bool(self.bits >> age & 1))

    def add(self, sequence: int, version: int = 0) -> None:
        """Mark `sequence` as folded at global `version`. Raises ValueError if it was seen or is negative."""
        if sequence < 0 or self.seen(sequence):
            raise ValueError(f"sequence {sequence} is negative or was added before")
        ahead = sequence - self.highest
        if ahead <= 0:
            self.bits |= 1 << -ahead
        else:
            self.bits = (self.bits << ahead & _MASK if ahead < WINDOW else 0) | 1
            self.highest = sequence
        self.version = version

    def without(self, sequences: Iterable[int]) -> "SequenceWindow | None":
        """This window as if these had not been added; None where nothing else was.

        What lies below the present window counts as a repeat still.
        """
        bits = self.bits
        for age in (self.highest - sequence for sequence in sequences):
            if 0 <= age < WINDOW:
                bits &= ~(1 << age)
        down = (bits & -bits).bit_length() - 1 if bits else WINDOW
        highest = self.highest - down
        if highest < 0:
            return None
        below = ((1 << down) - 1) << (WINDOW - down)
        there = (1 << min(highest + 1, WINDOW)) - 1  # no sequence is below 0
        return SequenceWindow(highest, (bits >> down | below) & there, self.version)

    def dump(self) -> list[int]:
        """Highest, version, then the bits as unsigned 64-bit words, lowest first, without trailing zeros."""
        words = []
        bits = self.bits
        while bits:
            words.append(bits & _WORD_MASK)
            bits >>= _WORD
        return [self.highest, self.version, *words]

    @classmethod
    def load(cls, numbers: Sequence[int]) -> "SequenceWindow":
        """The window that `dump` wrote. Raises StateError if it did not write this."""
        good = 3 <= len(numbers) <= _LONGEST and all(0 <= number <= _WORD_MASK for number in numbers)
        if not good or not numbers[2] & 1 or numbers[0] > _HIGHEST:
            raise StateError("a window of sequences is damaged")
        return cls(numbers[0], sum(word << _WORD * i for i, word in enumerate(numbers[2:])), numbers[1])


class Sequences:
    """The windows of all clients that could still repeat themselves, the longest silent first."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[str, SequenceWindow] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def seen(self, client_id: str, sequence: int) -> bool:
        """Whether this update was folded already, or must be taken as folded."""
        window = self._windows.get(client_id)
        return window is not None and window.seen(sequence)

    def of(self, client_id: str) -> SequenceWindow | None:
        """One client's window; None for a client that has none."""
        return self._windows.get(client_id)

    def add(self, client_id: str, sequence: int, version: int) -> None:
        """Mark as folded at global `version`, which never falls. Raises ValueError for a repeat."""
        window = self._windows.get(client_id) or SequenceWindow()
        window.add(sequence, version)
        self._windows.pop(client_id, None)
        self._windows[client_id] = window

    def overflow(self) -> int:
        """Before which version clients must be forgotten, so that no more are held than may be; 0 for none."""
        beyond = len(self._windows) - CLIENTS_KEPT
        if beyond <= 0:
            return 0
        return next(islice(self._windows.values(), beyond - 1, None)).version + 1

    def forget_before(self, version: int) -> list[str]:
        """Drop the clients whose last update was folded before `version`; returns which."""
        forgotten = []
        while self._windows:
            client_id = next(iter(self._windows))
            if self._windows[client_id].version >= version:
                break
            del self._windows[client_id]
            forgotten.append(client_id)
        return forgotten

    def dump(self) -> dict[str, list[int]]:
        """Plain, of integers below 2^64."""
        return {client_id: window.dump() for client_id, window in self._windows.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Sequence[int]]) -> "Sequences":
        """What `dump` wrote, in whatever order it comes back. Raises StateError if it is damaged."""
        sequences = cls()
        windows = [(client_id, SequenceWindow.load(numbers)) for client_id, numbers in dumped.items()]
        sequences._windows = dict(sorted(windows, key=lambda item: item[1].version))
        return sequences
