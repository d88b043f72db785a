"""The evaluator: measures versions on held-out data and publishes what it found."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial

from llmos_stream.broker import Broker, TopicPartition, Topics
from llmos_stream.config import EvaluatorSettings, Settings
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.admission import head_of
from llmos_stream.log.control import ControlView, Pointer
from llmos_stream.log.event_check import evaluation_fault
from llmos_stream.log.events import emit
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.record_tracing import version_attributes
from llmos_stream.log.replica import Follower, newest_version, take_message
from llmos_stream.log.stream import MessageStream, foreign
from llmos_stream.log.topics import missing_topics
from llmos_stream.log.versions import Version, version_assembler
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.runtime.logs import Sparing
from llmos_stream.telemetry.tracing import TraceParent, follow
from llmos_stream.training import Task
from llmos_stream.training.model_evaluator import Evaluation, ModelEvaluator, check_test_data
from llmos_stream.types import EventKind, Role, VersionHead
from llmos_stream.wire import Message

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())

ROLE = Role.EVALUATOR
_POLL_SECONDS = 0.25
_CATCH_UP_SECONDS = 60.0


async def run_evaluator(
    broker: Broker,
    settings: Settings,
    task: Task,
    offload: Offload,
    shutdown: Shutdown,
    clock: Clock = SYSTEM_CLOCK,
) -> Evaluation | None:
    """Evaluate every `evaluator.every`-th version and the last, until the run ends. Returns the last evaluation.

    It begins with the newest version that it finds; with the first one where it was here before the topics were.
    While the broker does not answer it keeps trying, and goes on after the last version that it evaluated.
    Raises ConfigError, before it looks for any version, when the task has no central test data.
    """
    await offload.run(check_test_data, task, settings.task, settings.evaluator.batch_size)
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown, clock)
    measuring = _Measuring(
        federation,
        settings.evaluator,
        partial(ModelEvaluator, task, settings.task, settings.evaluator.batch_size),
    )
    await federation.keep_trying(measuring.follow, "looking for versions again")
    return measuring.last


class _Measuring:
    """What the evaluator keeps while it loses the broker and finds it again."""

    def __init__(self, federation: Federation, settings: EvaluatorSettings, make: Callable[[], ModelEvaluator]) -> None:
        self._federation = federation
        self._every = settings.every
        self._make = make
        self._evaluator: ModelEvaluator | None = None
        self._follower = Follower(shares=True)
        self._looked = False
        self._first: Pointer | None = None  # the newest version at the first look; None where there was none yet
        self._next: Pointer | None = None  # from where to read on
        self._passed_over: Version | None = None
        self._span: TraceParent | None = None  # the one that made the version looked at last
        self.last: Evaluation | None = None

    async def follow(self) -> None:
        """Raises BrokerUnavailable when the broker does not answer: call it again then."""
        federation, topics = self._federation, self._federation.topics
        needed = topics.models, topics.control, topics.evaluations
        if not self._looked:
            missing = await federation.until_stop(missing_topics(federation.broker, needed))
            # It was here before the federation: the first version is its first, too.
            self._looked = topics.models in missing
        if not await federation.wait_for_topics(*needed):
            return
        async with AsyncExitStack() as stack:
            producer = await stack.enter_async_context(federation.producer())
            control, stream = await federation.until_stop(self._open(stack))
            if self._evaluator is None:  # after the first look: what is published meanwhile is not skipped
                self._evaluator = await federation.run(self._make)
            first = self._next or self._first
            versions = _versions(stream, control, self._follower, federation)
            async with aclosing(versions):
                async for version, following, self._span in versions:
                    if first is not None and version.head.number < first.version:
                        continue  # only what the first one stands on
                    if version.head.number % self._every:
                        self._passed_over = version
                    else:
                        await self._measure(self._evaluator, version, producer)
                    self._next = following
                    if federation.shutdown.requested:
                        return
            last = self._passed_over
            # The run has ended with a version in between. A later one that could not be read has spoilt it.
            if last is not None and last is self._follower.version and not federation.shutdown.requested:
                await self._measure(self._evaluator, last, producer)

    async def _open(self, stack: AsyncExitStack) -> tuple[ControlView, MessageStream]:
        federation = self._federation
        models = federation.topics.models
        control = await stack.enter_async_context(federation.control())
        reader = await stack.enter_async_context(federation.reader(models))
        stream = MessageStream(reader, version_assembler(federation.wire), clock=federation.clock)
        if not self._looked:
            self._looked, self._first = True, control.latest
        begin, held = self._next, self._follower.version
        if begin is None or held is None or held.head.number != begin.version - 1:
            # It does not hold what the next one stands on.
            self._follower = Follower(shares=True)
            origin = self._first if self._next is None else control.latest
            begin = origin and origin.beginning
        if begin is not None:
            stream.seek(TopicPartition(models, begin.partition), begin.offset)
        return control, stream

    async def _measure(self, evaluator: ModelEvaluator, version: Version, producer: RetryingProducer) -> None:
        with follow("evaluator.evaluate", self._span, version_attributes(version.head)):
            found = await self._federation.run(evaluator.evaluate, version.head.number, version.layout, version.weights)
        self._passed_over, self.last = None, found
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        logger.info("version %d: %s", found.version, metrics)
        measured = self._federation.event(
            EventKind.EVALUATION,
            ROLE,
            version=found.version,
            metrics=found.metrics,
            num_examples=found.num_examples,
            seconds=found.seconds,
        )
        if fault := evaluation_fault(measured, self._federation.clock):
            logger.warning("the evaluation of version %d does not count: %s", found.version, fault)
        await producer.deliver(partial(emit, topic=self._federation.topics.evaluations, entry=measured))


async def evaluate_once(
    broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown
) -> Evaluation | None:
    """Evaluate the newest version, publish nothing. None when a stop was asked for before there was one.

    Raises ConfigError as `run_evaluator` does.
    """
    await offload.run(check_test_data, task, settings.task, settings.evaluator.batch_size)
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown)
    if not await federation.wait_for_topics(federation.topics.models, federation.topics.control):
        return None
    evaluator = await offload.run(ModelEvaluator, task, settings.task, settings.evaluator.batch_size)
    async with federation.control() as control, federation.reader(federation.topics.models, "latest") as models:
        while control.latest is None and not shutdown.requested:
            await control.newer_than(None, _POLL_SECONDS, shutdown)
        version = await newest_version(control, federation.replica(models), _CATCH_UP_SECONDS)
    if version is None:
        return None
    return await offload.run(evaluator.evaluate, version.head.number, version.layout, version.weights)


async def _versions(
    stream: MessageStream, control: ControlView, follower: Follower, federation: Federation
) -> AsyncGenerator[tuple[Version, Pointer, TraceParent | None], None]:
    """Each version in the order of the log, where the next may begin, and the span that made it, where that is known.

    A version's weights are good until the next one. Until the run has ended with the last of them, or a stop is asked
    for.
    """
    begin: Pointer | None = None
    while not federation.shutdown.requested:
        # The end is written after the last version: once it is known, what there is to read is all there will be.
        await control.poll(0)
        if control.finished is not None and await federation.until_stop(stream.at_end()):
            return
        try:
            message = await stream.next(_POLL_SECONDS)
        except OffsetGone as error:
            logger.warning(
                "retention deleted versions before they were evaluated (%s); going on with the newest", error
            )
            follower.version = None
            begin, sought = control.latest and control.latest.beginning, begin
            if begin is not None and begin != sought:
                stream.seek(TopicPartition(federation.topics.models, begin.partition), begin.offset)
            else:
                await federation.until_stop(stream.seek_to_beginning())
            continue
        if message is None:
            continue
        span = stream.span_of(message.partition, message.first_offset)
        if version := await _decoded(message, follower, federation, span):
            yield version, Pointer(version.head.number + 1, message.partition, message.last_offset + 1), span


async def _decoded(
    message: Message, follower: Follower, federation: Federation, span: TraceParent | None
) -> Version | None:
    head = head_of(VersionHead, message)
    try:
        with follow("version.apply", span, version_attributes(head)):
            version = await federation.run(take_message, follower, message)
    except Rejected as error:
        foreign(federation.topics.models, message.first_offset, error.detail)
        return None
    if version is None:
        logger.warning("version %d is passed over: what it stands on was not read", head.number)
    return version
