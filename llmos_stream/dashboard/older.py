"""Versions that the view does not hold any more, looked up in `<f>.models` when somebody asks for one."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from llmos_stream.broker import Broker, Topics
from llmos_stream.errors import NotFound
from llmos_stream.log.index import version_index
from llmos_stream.log.scan import LoggedHead
from llmos_stream.types import VersionHead

_SECONDS = 10.0
_KEPT = 16
_KEPT_CONTRIBUTIONS = 20_000


class OlderVersions:
    """Looks up one version at a time, for at most `seconds`, and keeps a few of the last ones.

    `broker` returns the broker, or raises BrokerUnavailable while there is none.
    """

    def __init__(self, broker: Callable[[], Broker], federation: str, seconds: float = _SECONDS) -> None:
        self._broker = broker
        self._topic = Topics(federation).models
        self._seconds = seconds
        self._one_at_a_time = asyncio.Lock()
        self._kept: OrderedDict[int, LoggedHead[VersionHead]] = OrderedDict()
        self.waiting = 0

    async def get(self, number: int) -> LoggedHead[VersionHead]:
        """Look a version up.

        Raises:
            NotFound: The log does not hold it. The message says whether it did.
            TopicMissing: There is no federation yet.
            BrokerUnavailable: The broker does not answer.
            TimeoutError: It took too long.
        """
        self.waiting += 1
        try:
            async with self._one_at_a_time:
                if number not in self._kept:
                    async with asyncio.timeout(self._seconds):
                        self._keep(await self._look_up(number))
                self._kept.move_to_end(number)
                return self._kept[number]
        finally:
            self.waiting -= 1

    def _keep(self, logged: LoggedHead[VersionHead]) -> None:
        self._kept[logged.head.number] = logged
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT or sum(len(one.head.manifest) for one in self._kept.values()) > _KEPT_CONTRIBUTIONS
        ):
            self._kept.popitem(last=False)

    async def _look_up(self, number: int) -> LoggedHead[VersionHead]:
        async with version_index(self._broker(), self._topic) as index:
            if (found := await index.find(number)) is not None:
                return LoggedHead(replace(found.head, tensors=None), found.partition, found.offset)
            oldest = await index.oldest()
        if oldest is not None and number < oldest.head.number:
            raise NotFound(f"version {number} is not in the log any more: retention has deleted it")
        raise NotFound(f"version {number} is not in the log")
