"""The newest models that sites have trained alone and share, until they are measured. Pure: it reads and measures none.

Bounded in sites and bytes. Where there is no room for all, sites that contribute to versions come first: anybody can
make names up.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from llmos_stream.log.admission import head_of
from llmos_stream.training.site_evaluator import is_due
from llmos_stream.types import LocalModelHead
from llmos_stream.wire import Message

SITES = 64
AT_ONCE = 4
"""So many models at most are measured between two updates."""
_CONTRIBUTORS_KEPT = 1024


@dataclass(slots=True)
class _Site:
    """What a site shares. `message` is None once that was measured, which was last at version `measured_at`."""

    message: Message | None = None
    measured_at: int | None = None
    is_doubted: bool = False  # at the last look its version was one that nobody had announced

    def drop(self) -> Message | None:
        """Give back what is held."""
        dropped, self.message = self.message, None
        if dropped is not None:
            dropped.parts.close()
        return dropped


class HeldModels:
    """One model at most of each of SITES sites, together of at most `most_bytes`. `every` is as in `due`."""

    def __init__(self, every: int, most_bytes: int) -> None:
        self._every = every
        self._most_bytes = most_bytes
        self._sites: dict[str, _Site] = {}
        self._contributors: OrderedDict[str, None] = OrderedDict()

    def note(self, contributors: Iterable[str]) -> None:
        """These clients have contributed to a version."""
        for name in contributors:
            self._contributors[name] = None
            self._contributors.move_to_end(name)
        while len(self._contributors) > _CONTRIBUTORS_KEPT:
            self._contributors.popitem(last=False)

    def take(self, message: Message) -> bool:
        """Hold a model in place of an older one of the same site. False where there is no room, and it was dropped."""
        name = head_of(LocalModelHead, message).client_id
        if (known := self._sites.get(name)) is not None:
            known.drop()
        if not self._make_room(name, message.head.payload_size):
            message.parts.close()
            return False
        site = self._sites.setdefault(name, _Site())
        site.message, site.is_doubted = message, False
        return True

    def due(self, newest: int, *, all_of_them: bool = False) -> list[Message]:
        """Hand over the models whose turn it is when `newest` is the newest version.

        It is that of a site once in `every` versions, and of AT_ONCE sites at a time, those first that contribute, and
        then those that have waited longest. Or of `all_of_them`.
        """
        waiting = [(name, site) for name, site in self._sites.items() if self._is_due(site, newest, all_of_them)]
        waiting.sort(key=lambda one: (one[0] not in self._contributors, _measured(one[1])))
        found = []
        for _, site in waiting if all_of_them else waiting[:AT_ONCE]:
            if site.message is not None:
                found.append(site.message)
            site.message, site.measured_at = None, newest
        return found

    def drop_impossible(self, newest: int) -> list[Message]:
        """Drop models by versions that there are not, and return them.

        The first look after one came passes it over: its site may have heard of the version earlier.
        """
        dropped = []
        for site in self._sites.values():
            if site.message is not None and head_of(LocalModelHead, site.message).version > newest:
                if site.is_doubted and (message := site.drop()) is not None:
                    dropped.append(message)
                site.is_doubted = True
        return dropped

    def _is_due(self, site: _Site, newest: int, all_of_them: bool) -> bool:
        if site.message is None or head_of(LocalModelHead, site.message).version > newest:
            return False
        return all_of_them or is_due(newest, site.measured_at, self._every)

    def _make_room(self, name: str, size: int) -> bool:
        strangers = [site for site in self._sites if site not in self._contributors and site != name]
        while not self._has_room(name, size):
            if name not in self._contributors or not strangers:
                return False
            self._sites.pop(strangers.pop(0)).drop()
        return True

    def _has_room(self, name: str, size: int) -> bool:
        held = sum(site.message.head.payload_size for site in self._sites.values() if site.message is not None)
        return (name in self._sites or len(self._sites) < SITES) and held + size <= self._most_bytes


def _measured(site: _Site) -> int:
    return -1 if site.measured_at is None else site.measured_at
