"""The evaluator: measures versions on held-out data and publishes what it found."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter

from llmos_stream.broker import Broker, Reader, TopicPartition, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, OffsetGone, Rejected
from llmos_stream.roles.client import wait_for_topics
from llmos_stream.roles.control import ControlView
from llmos_stream.roles.delivery import Delivery
from llmos_stream.roles.events import emit, event
from llmos_stream.roles.local_model import LocalModel
from llmos_stream.roles.versions import Version, decode_version, fetch_version, version_assembler, version_head
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import LocalTrainer, Task, evaluate
from llmos_stream.types import EventKind
from llmos_stream.wire import Message, Refusal

log = logging.getLogger(__name__)

ROLE = "evaluator"
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
    """Evaluate every `evaluator.every`-th version and the last, until the run ends. Returns the last evaluation."""
    topics = Topics(settings.federation.name)
    if not await wait_for_topics(broker, topics, shutdown):
        return None
    judge = await offload.run(Judge, task, settings)
    last: Evaluation | None = None
    async with AsyncExitStack() as stack:
        delivery = await stack.enter_async_context(Delivery(broker, shutdown))
        control = ControlView(await stack.enter_async_context(broker.reader([topics.control], start="earliest")))
        models = await stack.enter_async_context(broker.reader([topics.models], start="earliest"))
        await control.catch_up(_CATCH_UP_SECONDS)
        if control.latest:
            models.seek(TopicPartition(topics.models, control.latest.partition), control.latest.offset)
        passed_over: Version | None = None
        async for version in _versions(models, control, settings, offload, shutdown):
            if version.head.number % settings.evaluator.every:
                passed_over = version
            else:
                passed_over, last = None, await _measure(judge, version, offload, delivery, topics)
            if shutdown.requested:
                return last
        if passed_over is not None:  # the run has ended with a version in between
            last = await _measure(judge, passed_over, offload, delivery, topics)
    return last


async def _measure(
    judge: "Judge", version: Version, offload: Offload, delivery: Delivery, topics: Topics
) -> Evaluation:
    found = await offload.run(judge.evaluate, version)
    log.info("version %d: %s", found.version, ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items()))
    measured = event(
        EventKind.EVALUATION,
        ROLE,
        version=found.version,
        metrics=found.metrics,
        num_examples=found.num_examples,
        seconds=found.seconds,
    )
    await delivery.deliver(partial(emit, topic=topics.events, entry=measured))
    return found


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
        await control.catch_up(_CATCH_UP_SECONDS)
        while control.latest is None and not shutdown.requested:
            await control.newer_than(None, _POLL_SECONDS, shutdown)
    if control.latest is None:
        return None
    async with broker.reader([topics.models], start="latest") as models:
        version = await fetch_version(
            models,
            topics.models,
            control.latest,
            wire=settings.wire,
            offload=offload,
            timeout_seconds=_CATCH_UP_SECONDS,
        )
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
    models: Reader, control: ControlView, settings: Settings, offload: Offload, shutdown: Shutdown
) -> AsyncIterator[Version]:
    """Each version in the order of the log, until the run has ended with the last of them, or a stop is asked for."""
    assembler = version_assembler(settings.wire)
    while not shutdown.requested:
        # The end is written after the last version: once it is known, what there is to read is all there will be.
        await control.poll(0)
        if control.finished and await models.lag() == 0:
            return
        try:
            records = await models.poll(_POLL_SECONDS)
        except OffsetGone as error:
            log.warning("retention deleted versions before they were evaluated (%s); going on with the newest", error)
            assembler = version_assembler(settings.wire)
            await models.seek_to_beginning()
            if control.latest:
                models.seek(TopicPartition(models.partitions[0].topic, control.latest.partition), control.latest.offset)
            continue
        for record in records:
            outcomes = assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            )
            for outcome in outcomes:
                if version := await _decoded(outcome, offload):
                    yield version


async def _decoded(outcome: Message | Refusal, offload: Offload) -> Version | None:
    if isinstance(outcome, Refusal):
        log.error("a version at offset %d cannot be read: %s", outcome.offset, outcome.detail)
        return None
    try:
        return await offload.run(decode_version, version_head(outcome), outcome.parts)
    except Rejected as error:
        log.error("a version at offset %d cannot be read: %s", outcome.first_offset, error.detail)
        return None
