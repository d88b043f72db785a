"""How many refusals of one key are written down: a flood costs the flooder, and not the log."""

from collections import OrderedDict

SECONDS = 60.0
OF_ONE_KEY = 64
OF_ALL = 4096
_KEYS_KEPT = 4096


class RefusalQuota:
    """At most OF_ONE_KEY refusals of one key, and OF_ALL together, in each SECONDS."""

    def __init__(self) -> None:
        self._since = 0.0
        self._all = 0
        self._of: OrderedDict[bytes, int] = OrderedDict()

    def takes(self, key: bytes, now: float) -> bool:
        """Whether a refusal of `key` at `now` (seconds of any clock) is still written down."""
        if now - self._since >= SECONDS:
            self._since, self._all = now, 0
            self._of.clear()
        count = self._of.pop(key, 0)
        self._of[key] = count + 1
        if len(self._of) > _KEYS_KEPT:
            self._of.popitem(last=False)
        if count >= OF_ONE_KEY or self._all >= OF_ALL:
            return False
        self._all += 1
        return True
