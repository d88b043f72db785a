"""A broker that is lost while versions are read from it."""

import asyncio
from typing import Any

from llmos_stream.errors import BrokerUnavailable
from llmos_stream.testing import Call


class LosesVersions:
    """Gives few records of `<f>.models` at a time; the polls that are named, of those that find any, lose the broker.

    That they do after a silence, which a test may prolong.
    """

    def __init__(self, lost_at: set[int], records_at_once: int = 1) -> None:
        self.lost_at = lost_at
        self.found = 0
        self.polled, self.lost, self.silence_over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.silence_over.set()
        self._at_once = records_at_once

    async def __call__(self, call: Call) -> Any:
        if call.operation != "poll" or not call.topics[0].endswith(".models"):
            return await call.proceed()
        self.polled.set()
        call.arguments["max_records"] = self._at_once
        if records := await call.proceed():
            self.found += 1
            if self.found in self.lost_at:
                self.lost.set()
                await self.silence_over.wait()
                raise BrokerUnavailable("lost")
        return records
