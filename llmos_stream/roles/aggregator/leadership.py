"""Who aggregates: one leads, others stand by, and the log decides.

The leader claims the federation with a record in `<f>.control` that carries a term, one above the last.
The claim is written in a transaction of the producer whose transactional id fences every older one, so
terms rise in the order of the fencing. From then on the leader beats. A standby takes over when no beat
has come for `aggregator.takeover_seconds`, or at once when the leader left in order. Of several that do so
at the same moment the last one leads, and the others stand by again. A takeover that was not needed costs
the other one its place and the log nothing: only the newest can commit.

Whoever can write to the topic can forge a higher term. The leader that hears one claims the next: a transaction that
commits shows that nobody has fenced it, and that the other one leads nothing.

Standbys cannot vote in the log: a leader that died in a transaction keeps everything after it from readers
until its producer is fenced, which is the takeover.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from llmos_stream.broker import Producer
from llmos_stream.config import AggregatorSettings
from llmos_stream.errors import Fenced, TransactionAborted
from llmos_stream.log.control import ControlView
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.runtime import Shutdown
from llmos_stream.telemetry.process_metrics import FOREIGN, LEADERSHIPS, LEADING
from llmos_stream.types import TopicKind
from llmos_stream.wire.control import AGGREGATOR, Leader, RunEnd, dump_setting

logger = logging.getLogger(__name__)

_LISTEN_SECONDS = 0.1


class Load(NamedTuple):
    """How busy the leader is (see `control_records.Leader`)."""

    pace_seconds: float = 0.0
    lag: int = 0
    steps_per_second: float = 0.0


@contextmanager
def leading() -> Iterator[None]:
    """This process shows as the one that leads meanwhile."""
    LEADERSHIPS.inc()
    LEADING.set(1)
    try:
        yield
    finally:
        LEADING.set(0)


class Leadership:
    """One aggregator's place in a federation, through all its attempts to lead."""

    def __init__(self, federation: Federation, settings: AggregatorSettings) -> None:
        self._federation = federation
        self._topic = federation.topics.control
        self._clock = federation.clock
        self._settings = settings
        self._instance = uuid4().hex[:12]
        self._term = 0
        self._claimed = 0.0

    async def await_turn(self, control: ControlView, before: RunEnd | None = None) -> bool:
        """Stand by until nobody leads. False when the run ends or a stop is asked for before.

        `before` is the end that the run is to go on after.
        """

        def is_over() -> bool:
            return control.finished is not None and control.finished is not before

        await control.catch_up()
        if self._is_free(control):
            return not is_over()
        logger.info("standing by: another aggregator leads, or did until a moment ago")
        patience, beat = self._settings.takeover_seconds, self._settings.beat_seconds
        heard, silent = control.beats, 0.0
        while not (self._federation.shutdown.requested or is_over() or self._is_free(control)):
            asked = self._clock.monotonic()
            if silent >= patience:
                await control.catch_up()
                if control.beats == heard and self._clock.monotonic() - asked < patience:
                    logger.warning("taking over: the aggregator that led was silent for %.1f s", silent)
                    return True
                silent = 0.0  # the log itself was away: the leader gets the same time to be heard again
            await control.poll(beat)
            # Where this process itself stood still, so may the leader have: a long stall counts as one beat missed.
            silent = silent + min(self._clock.monotonic() - asked, beat) if control.beats == heard else 0.0
            heard = control.beats
        return not (self._federation.shutdown.requested or is_over())

    async def claim(self, producer: Producer, control: ControlView) -> None:
        """Lead from here on. `producer` is transactional and was opened for this; `control` is up to date afterwards.

        Raises TransactionAborted when another one was quicker.
        """
        await control.catch_up()
        try:
            await self._claim(producer, control)
        except Fenced as error:
            raise TransactionAborted("another aggregator took over first") from error
        self._claimed = self._clock.monotonic()
        logger.info("leading, term %d", self._term)

    async def keep_place(self, producer: Producer, control: ControlView) -> None:
        """Where somebody claims a higher term: lead on under the next, or raise Fenced because that one leads."""
        if self._is_another(control.leader):
            await self._claim(producer, control)
            FOREIGN.labels(TopicKind.CONTROL).inc()
            logger.warning("a higher term was claimed by nobody who leads; leading on, term %d", self._term)

    async def _claim(self, producer: Producer, control: ControlView) -> None:
        term = 1 if control.leader is None else control.leader.term + 1
        async with producer.transaction() as transaction:
            await transaction.send(self._topic, dump_setting(Leader(term, self._instance)), key=AGGREGATOR)
        self._term = term

    async def beat(self, control: ControlView, load: Callable[[], Load | None]) -> None:
        """Say so, and how busy it is, every `aggregator.beat_seconds`; not while `load` is None. Never returns.

        Raises Fenced when the aggregation hangs and another one leads: nobody else would notice.
        """
        silent, beat = False, self._settings.beat_seconds
        async with RetryingProducer(self._federation.broker, Shutdown(), longest_pause_seconds=beat) as delivery:
            while True:
                if (present := load()) is not None:
                    await delivery.deliver(partial(self._say, load=present))
                elif not silent:
                    silent = True
                    logger.error("the aggregation does not come round; a standby may take over")
                await self._listen(control, beat)
                if load() is None and self._is_another(control.leader):
                    raise Fenced("another aggregator has taken over this federation, while this one did not come round")

    async def _listen(self, control: ControlView, seconds: float) -> None:
        """Keep `control` current for this long: a takeover and a pause take effect when they are heard."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(left, _LISTEN_SECONDS))
            while await control.poll(0):  # all of it: versions may come faster than one poll takes them
                pass

    async def leave(self) -> None:
        """Hand over in order, so that a standby need not wait."""
        async with self._federation.broker.producer() as producer:
            await self._say(producer, Load(), left=True)

    @property
    def is_settled(self) -> bool:
        """Whether it has led for a while. One that is overtaken before that lost a race between standbys."""
        return self._clock.monotonic() - self._claimed > self._settings.takeover_seconds

    async def superseded(self) -> bool:
        """Whether another one claims the federation within `aggregator.takeover_seconds` from now.

        Kafka tells a writer that was fenced and one whose transaction took too long the same thing.
        """
        deadline = self._clock.monotonic() + self._settings.takeover_seconds
        async with self._federation.control() as control:
            while not self._is_another(control.leader) and self._clock.monotonic() < deadline:
                await control.poll(self._settings.beat_seconds)
        return self._is_another(control.leader)

    def _is_free(self, control: ControlView) -> bool:
        leader = control.leader
        return leader is None or leader.left or leader.instance == self._instance

    def _is_another(self, leader: Leader | None) -> bool:
        return leader is not None and leader.term > self._term

    async def _say(self, producer: Producer, load: Load, left: bool = False) -> None:
        record = dump_setting(Leader(self._term, self._instance, left, *load))
        await producer.send(self._topic, record, key=AGGREGATOR)
