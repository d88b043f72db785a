"""What strikes a role: the hook around its use of the broker, which tells the injector what the role is doing."""

from collections.abc import Iterable
from typing import Any

from llmos_stream.broker import Producer, Sent, Topics
from llmos_stream.testing import Call
from llmos_stream.types import UpdateHead
from llmos_stream.wire import read_chunk, unpack_prelude
from tests.faults.injector import Crash, Injector
from tests.faults.plan import Fault


class Strikes:
    """The `Hook` of one role's broker."""

    def __init__(self, injector: Injector, topics: Topics) -> None:
        self.injector = injector
        self.topics = topics
        self._crashed = False
        self._transaction: object = None
        self._version: int | None = None
        self._held: list[tuple[int, list[bytes], bytes | None]] = []

    async def __call__(self, call: Call) -> Any:
        try:
            return await self._around(call)
        except Crash:
            self._crashed = True
            raise

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    async def send_held(self, producer: Producer, number: int | None = None) -> None:
        """Send what was held back until now; all of it where no number is given."""
        for item in [held for held in self._held if number is None or held[0] <= number]:
            await producer.send_all(self.topics.updates, item[1], key=item[2])
            self._held.remove(item)

    async def _around(self, call: Call) -> Any:
        if call.operation == "close" and call.topics:
            return await call.proceed()  # a reader is closed where its process ends
        if call.operation == "abort_transaction":
            if self._crashed:
                raise Crash  # a process that was killed aborts nothing
            return await call.proceed()
        await self.injector.gate()
        match call.operation:
            case "begin_transaction":
                self._version = None
                await self.injector.transaction_begins()
                self._transaction = await call.proceed()
                return self._transaction
            case "commit_transaction":
                await self.injector.commit_begins()
                await call.proceed()
                return await self.injector.transaction_ended(self._version)
            case "send_all" if call.topics == (self.topics.updates,):
                return await self._send_update(call)
            case "send" | "send_all" | "send_offsets" if call.target is self._transaction:
                return await self._send_in_transaction(call)
        return await call.proceed()

    async def _send_in_transaction(self, call: Call) -> Any:
        if call.operation == "send_all" and call.topics == (self.topics.models,):
            self._version = int(call.arguments["key"])
            await self.injector.version_is_sent()
        sent = await call.proceed()
        await self.injector.sent_one()
        return sent

    async def _send_update(self, call: Call) -> Any:
        call.arguments["values"] = records = list(call.arguments["values"])
        number = number_of(records)
        self.injector.begin_update(number)
        sent = await self._struck(call, records, number)
        await self.send_held(call.target, number)
        return sent

    async def _struck(self, call: Call, records: list[bytes], number: int) -> Any:
        if (point := self.injector.of_update(number)) is None:
            return await call.proceed()
        if point.fault is Fault.KILL_CLIENT:
            if begun := records[: min(point.extra, len(records) - 1)]:
                call.arguments["values"] = begun
                await call.proceed()
            await self.injector.strike(point)
        late = point.fault in {Fault.REORDER, Fault.DELAY}
        # What is late is nowhere yet; nobody waits for where it lies.
        sent = Sent(self.topics.updates, 0, 0) if late else await call.proceed()
        if point.fault is Fault.KILL_CLIENT_AFTER_SEND:
            await self.injector.strike(point)
        if late or point.fault is Fault.DUPLICATE:
            self._held.append((number + point.extra, records, call.arguments["key"]))
            self.injector.done(point)
        return sent


def number_of(records: Iterable[bytes]) -> int:
    """Which of its client's updates this is: the driver writes it into the metrics."""
    start = bytearray()
    for record in records:
        start += read_chunk(record).body
        if (prelude := unpack_prelude(bytes(start))) is not None:
            if not isinstance(prelude.head, UpdateHead):
                raise TypeError("not an update")
            return int(prelude.head.metrics["n"])
    raise ValueError("no whole prelude in these records")
