"""Ending a run at an operator's wish.

The aggregator that leads is asked to, and ends the run as its stop rule does. Where none leads, whoever asks takes its
place for as long as it takes to write down the end.
"""

from contextlib import AsyncExitStack

from llmos_stream.config import Settings
from llmos_stream.errors import NotFound
from llmos_stream.log.control import ControlView, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.roles.aggregator.lifecycle import Aggregation
from llmos_stream.roles.aggregator.publisher import Publisher
from llmos_stream.roles.aggregator.recovery import find_newest
from llmos_stream.roles.aggregator.stopping import by_operator
from llmos_stream.wire.control import FINISH, dump_finish


async def finish_run(federation: Federation, settings: Settings) -> RunEnd | None:
    """End the run of a federation. Returns how it has ended, also where it had before; None: a stop was asked for.

    Raises:
        TopicMissing: There is no such federation.
        NotFound: It has no version yet.
    """
    async with federation.control() as control:
        if control.finished is not None:
            return control.finished
        if control.latest is None:
            raise NotFound(f"federation {federation.name} has not begun: there is nothing to finish")
    finishing = _Finishing(federation, settings)
    return await finishing.run() or finishing.ended


class _Finishing(Aggregation):
    """Stands by until the run has ended, or until it is up to this process."""

    ended: RunEnd | None = None

    def _require_more(self, end: RunEnd) -> None:
        """It has just ended: see `_prepare`."""

    async def _prepare(self, stack: AsyncExitStack, control: ControlView) -> bool:
        self.ended = control.finished
        if self.ended is not None:
            return False
        if not control.asked_to_finish:
            async with self._federation.producer() as producer:
                request = dump_finish(self._federation.clock.time_ms())
                await producer.deliver(lambda ready: ready.send(self._federation.topics.control, request, key=FINISH))
        return True

    async def _lead(self, stack: AsyncExitStack, publisher: Publisher, control: ControlView) -> RunEnd | None:
        found = await find_newest(self._federation, control)
        end = by_operator(0 if found is None else found.pointer.version)
        await publisher.commit({}, end=end)
        return end
