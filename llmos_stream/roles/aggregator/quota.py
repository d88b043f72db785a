"""How many refusals of one key are written down: a flood costs the flooder, and not the log."""

from collections import OrderedDict

from llmos_stream.config import AggregatorSettings

SECONDS = 60.0
OF_ALL = 64
"""So many clients' worth of refusals is written down of all together: a flooder may make up names."""
_KEYS_KEPT = 4096


class RefusalQuota:
    """At most so many refusals and bytes of them of one key in each SECONDS, and OF_ALL times that together."""

    def __init__(self, settings: AggregatorSettings) -> None:
        self._entries = settings.refusals_kept
        self._bytes = settings.refused_bytes_kept
        self._since = 0.0
        self._all = 0, 0
        self._of: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def takes(self, key: bytes, size: int, now: float) -> bool:
        """Whether a refusal of `key`, of so many bytes, at `now` (seconds of any clock) is still written down."""
        if now - self._since >= SECONDS:
            self._since, self._all = now, (0, 0)
            self._of.clear()
        entries, held = self._of.pop(key, (0, 0))
        takes = self._fits(entries + 1, held + size, 1) and self._fits(self._all[0] + 1, self._all[1] + size, OF_ALL)
        if takes:
            entries, held = entries + 1, held + size
            self._all = self._all[0] + 1, self._all[1] + size
        self._of[key] = entries, held
        if len(self._of) > _KEYS_KEPT:
            self._of.popitem(last=False)
        return takes

    def _fits(self, entries: int, held: int, times: int) -> bool:
        return entries <= times * self._entries and held <= times * self._bytes
