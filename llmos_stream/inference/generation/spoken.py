"""The text of an answer, as far as it is certain. Pure.

A character may take several tokens, and a stop string several characters: what may yet become either is kept back.
"""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Spoken:
    """Turns tokens into text, and ends it before the first of the `stops`.

    Args:
        decode: Gives the text of tokens. It is asked for a few at a time, the newest.
        stops: Strings that are no longer part of the answer. None of them is empty.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._tokens: list[int] = []  # from those on that the next token's text may depend on
        self._told = 0  # of these tokens, the text is told
        self._kept = ""  # may be the beginning of a stop
        self._stopped = False

    def has_stopped(self) -> bool:
        """Whether a stop came. Nothing more is told then."""
        return self._stopped

    def add(self, token: int) -> str:
        """Return the text that is certain with one more token."""
        self._tokens.append(token)
        return self._tell(self._new(whole=False))

    def end(self) -> str:
        """Return the text that was kept back: no further token comes."""
        text = self._tell(self._new(whole=True))
        kept, self._kept = self._kept, ""
        return text if self._stopped else text + kept

    def _new(self, *, whole: bool) -> str:
        before, now = self._decode(self._tokens[: self._told]), self._decode(self._tokens)
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not whole):
            return ""
        self._tokens, self._told = self._tokens[self._told :], len(self._tokens) - self._told
        return now[len(before) :]

    def _tell(self, text: str) -> str:
        if self._stopped:
            return ""
        text = self._kept + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._stopped, self._kept = True, ""
            return text[: min(found)]
        back = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._kept = text[len(text) - back :]
        return text[: len(text) - back]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)
