"""The evaluator: measures versions on held-out data and publishes what it found."""

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter

from llmos_stream.broker import Broker, Reader, TopicPartition, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, OffsetGone, Rejected
from llmos_stream.log.control import ControlView, Pointer
from llmos_stream.log.events import emit, event
from llmos_stream.log.producer import Delivery
from llmos_stream.log.record_tracing import Trail, version_attributes
from llmos_stream.log.replica import Follower, Replica, take_message
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.log.versions import Version, version_assembler, version_head
from llmos_stream.roles.shared_model import LocalModel
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import QUIET_SECONDS, keep_trying, until_stop
from llmos_stream.telemetry.tracing import TraceParent, follow
from llmos_stream.training import LocalTrainer, Task, evaluate
from llmos_stream.types import EventKind, Role
from llmos_stream.wire import Message, Refusal

logger = logging.getLogger(__name__)

ROLE = Role.EVALUATOR
_POLL_SECONDS = 0.25
_CATCH_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a version reached on the held-out data."""

    version: int
    metrics: dict[str, float]
    num_examples: int
    seconds: float


async def run_evaluator(
    broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown
) -> Evaluation | None:
    """Evaluate every `evaluator.every`-th version and the last, until the run ends. Returns the last evaluation.

    While the broker does not answer it keeps trying, and goes on after the last version that it evaluated.
    """
    measuring = _Measuring(broker, settings, task, offload, shutdown)
    await keep_trying(measuring.follow, shutdown, "looking for versions again")
    return measuring.last


class _Measuring:
    """What the evaluator keeps while it loses the broker and finds it again."""

    def __init__(self, broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown) -> None:
        self._broker = broker
        self._settings = settings
        self._topics = Topics(settings.federation.name)
        self._task = task
        self._offload = offload
        self._shutdown = shutdown
        self._judge: Judge | None = None
        self._follower = Follower()
        self._looked = False
        self._first: Pointer | None = None  # the newest version at the first look; None where there was none yet
        self._next: Pointer | None = None  # from where to read on
        self._passed_over: Version | None = None
        self._trail = Trail()
        self._came: TraceParent | None = None  # the span that made the version looked at last
        self.last: Evaluation | None = None

    async def follow(self) -> None:
        """Raises BrokerUnavailable when the broker does not answer: call it again then."""
        if not await wait_for_topics(self._broker, self._topics, self._shutdown):
            return
        if self._judge is None:
            self._judge = await self._offload.run(Judge, self._task, self._settings)
        async with AsyncExitStack() as stack:
            delivery = await stack.enter_async_context(Delivery(self._broker, self._shutdown))
            control, models = await until_stop(self._open(stack), self._shutdown)
            first = self._next or self._first
            common = (self._settings, self._offload, self._shutdown)
            versions = _versions(models, control, self._follower, self._trail, *common)
            async with aclosing(versions):
                async for version, following, self._came in versions:
                    if first is not None and version.head.number < first.version:
                        continue  # only what the first one stands on
                    if version.head.number % self._settings.evaluator.every:
                        self._passed_over = version
                    else:
                        await self._measure(self._judge, version, delivery)
                    self._next = following
                    if self._shutdown.requested:
                        return
            last = self._passed_over
            # The run has ended with a version in between. A later one that could not be read has spoilt it.
            if last is not None and last is self._follower.version and not self._shutdown.requested:
                await self._measure(self._judge, last, delivery)

    async def _open(self, stack: AsyncExitStack) -> tuple[ControlView, Reader]:
        topics = self._topics
        control = ControlView(await stack.enter_async_context(self._broker.reader([topics.control], start="earliest")))
        models = await stack.enter_async_context(self._broker.reader([topics.models], start="earliest"))
        await control.catch_up()
        if not self._looked:
            self._looked, self._first = True, control.latest
        begin, held = self._next, self._follower.version
        if begin is None or held is None or held.head.number != begin.version - 1:
            # It does not hold what the next one stands on.
            self._follower = Follower()
            origin = self._first if self._next is None else control.latest
            begin = origin and origin.beginning
        if begin is not None:
            models.seek(TopicPartition(topics.models, begin.partition), begin.offset)
        return control, models

    async def _measure(self, judge: "Judge", version: Version, delivery: Delivery) -> None:
        with follow("evaluator.evaluate", self._came, version_attributes(version.head)):
            found = await self._offload.run(judge.evaluate, version)
        self._passed_over, self.last = None, found
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        logger.info("version %d: %s", found.version, metrics)
        measured = event(
            EventKind.EVALUATION,
            ROLE,
            version=found.version,
            metrics=found.metrics,
            num_examples=found.num_examples,
            seconds=found.seconds,
        )
        await delivery.deliver(partial(emit, topic=self._topics.events, entry=measured))


async def evaluate_once(
    broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown
) -> Evaluation | None:
    """Evaluate the newest version, publish nothing. None when a stop was asked for before there was one."""
    topics = Topics(settings.federation.name)
    if not await wait_for_topics(broker, topics, shutdown):
        return None
    judge = await offload.run(Judge, task, settings)
    async with broker.reader([topics.control], start="earliest") as reader:
        control = ControlView(reader)
        await control.catch_up()
        while control.latest is None and not shutdown.requested:
            await control.newer_than(None, _POLL_SECONDS, shutdown)
    if control.latest is None:
        return None
    async with broker.reader([topics.models], start="latest") as models:
        replica = Replica(models, topics.models, settings.wire, offload)
        version = await replica.move_to(control.latest, _CATCH_UP_SECONDS)
    return await offload.run(judge.evaluate, version)


class Judge:
    """A task's model and held-out data, ready to measure versions. Not for two threads at once."""

    def __init__(self, task: Task, settings: Settings) -> None:
        model = task.model()
        self._task = task
        self._batch_size = settings.evaluator.batch_size
        self._local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), settings.task.share)

    def evaluate(self, version: Version) -> Evaluation:
        """Raises ConfigError when the version is of another model."""
        begun = perf_counter()
        if version.layout.digest != self._local.layout.digest:
            raise ConfigError("task.entry, task.share: the task's shared tensors are not the federation's")
        self._local.load(version.weights)
        metrics = evaluate(self._local.trainer.model, self._task.test_batches(self._batch_size), self._task.loss)
        num_examples = int(metrics.pop("num_examples"))
        return Evaluation(version.head.number, metrics, num_examples, perf_counter() - begun)


async def _versions(
    models: Reader,
    control: ControlView,
    follower: Follower,
    trail: Trail,
    settings: Settings,
    offload: Offload,
    shutdown: Shutdown,
) -> AsyncGenerator[tuple[Version, Pointer, TraceParent | None], None]:
    """Each version in the order of the log, where the next may begin, and the span that made it, where that is known.
    Its weights are good until the next one.

    Until the run has ended with the last of them, or a stop is asked for.
    """
    assembler = version_assembler(settings.wire)
    heard = monotonic()
    while not shutdown.requested:
        # The end is written after the last version: once it is known, what there is to read is all there will be.
        await control.poll(0)
        if control.finished and await until_stop(models.lag(), shutdown) == 0:
            return
        try:
            records = await models.poll(_POLL_SECONDS)
        except OffsetGone as error:
            logger.warning(
                "retention deleted versions before they were evaluated (%s); going on with the newest", error
            )
            assembler = version_assembler(settings.wire)
            await until_stop(models.seek_to_beginning(), shutdown)
            if control.latest:
                begin = control.latest.beginning
                models.seek(TopicPartition(models.partitions[0].topic, begin.partition), begin.offset)
            continue
        trail.note(records)
        heard = monotonic() if records else heard
        if monotonic() - heard > QUIET_SECONDS:
            await until_stop(models.lag(), shutdown)  # polls of a broker that is gone find nothing, for ever
            heard = monotonic()
        for record in records:
            outcomes = assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            )
            for outcome in outcomes:
                came = trail.take(outcome.partition, outcome.first_offset) if isinstance(outcome, Message) else None
                if version := await _decoded(outcome, follower, offload, came):
                    yield version, Pointer(version.head.number + 1, record.partition, record.offset + 1), came


async def _decoded(
    outcome: Message | Refusal, follower: Follower, offload: Offload, came: TraceParent | None
) -> Version | None:
    if isinstance(outcome, Refusal):
        logger.error("a version at offset %d cannot be read: %s", outcome.offset, outcome.detail)
        return None
    head = version_head(outcome)
    try:
        with follow("version.apply", came, version_attributes(head)):
            version = await offload.run(take_message, follower, outcome)
    except Rejected as error:
        logger.error("a version at offset %d cannot be read: %s", outcome.first_offset, error.detail)
        return None
    if version is None:
        logger.warning("version %d is passed over: what it stands on was not read", head.number)
    return version
