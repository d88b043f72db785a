"""What a client tells the federation of itself."""

import logging
from collections.abc import Mapping
from functools import partial
from itertools import islice
from math import isfinite
from typing import NamedTuple

from llmos_stream.broker import Producer
from llmos_stream.broker.rules import topic_missing
from llmos_stream.errors import BrokerError, Rejected, TopicMissing
from llmos_stream.log.event_check import evaluation_fault
from llmos_stream.log.events import emit
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.topics import missing_topics
from llmos_stream.roles.client.state_files import Unsent
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.types import Event, EventKind, Role
from llmos_stream.wire.evaluations import MOST_METRICS
from llmos_stream.wire.events import MOST_NAME

logger = logging.getLogger(__name__)


class Trainer(NamedTuple):
    """Who has trained a model on its own data alone, from which version on."""

    client_id: str
    since: int


class ClientEvents:
    """Writes one client's events. While the broker does not answer, a method waits for it."""

    def __init__(self, federation: Federation, producer: RetryingProducer, client_id: str) -> None:
        self._federation = federation
        self._producer = producer
        self._client_id = client_id
        self._tells_evaluations, self._may_tell = True, False

    async def joined(self, num_examples: int | None) -> None:
        """The client takes part from now on, with so many training examples, where it knows how many.

        Raises:
            BrokerUnavailable: a stop came before the broker answered.
        """
        await self._emit(self._event(EventKind.CLIENT_JOINED, num_examples=num_examples))

    async def left(self, reason: str, updates: int) -> None:
        """The client takes part no longer. Raises as `joined` does."""
        await self._emit(self._event(EventKind.CLIENT_LEFT, reason=reason, updates=updates))

    async def update_sent(self, update: Unsent, *, raw_bytes: int) -> None:
        """The log has acknowledged an update, which would have `raw_bytes` as float32."""
        head = update.head
        await self._emit_settled(
            self._event(
                EventKind.UPDATE_SENT,
                sequence=head.sequence,
                base_version=head.base_version,
                num_examples=head.num_examples,
                codec=head.codec.label,
                raw_bytes=raw_bytes,
                sent_bytes=update.sent_bytes,
                train_seconds=update.train_seconds,
                encode_seconds=update.encode_seconds,
                metrics=dict(head.metrics),
            )
        )

    async def measured(self, evaluation: Evaluation, trainer: Trainer | None = None) -> None:
        """The client has measured a version on its own validation data; or, by that version, the model of a `trainer`.

        Where it may not say so, or the federation's aggregator is of a release that has no topic for it, it goes on
        without.
        """
        told = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
        whose = "version" if trainer is None else f"what {trainer.client_id} has trained alone by version"
        logger.info("%s %d on the data of this site: %s", whose, evaluation.version, told)
        if self._tells_evaluations:
            entry = self._event(
                EventKind.EVALUATION,
                version=evaluation.version,
                metrics=_tellable(evaluation.metrics),
                num_examples=evaluation.num_examples,
                seconds=evaluation.seconds,
                **({} if trainer is None else {"trained_by": trainer.client_id, "since": trainer.since}),
            )
            if fault := evaluation_fault(entry, self._federation.clock):
                logger.warning("the evaluation of version %d is told nobody: %s", evaluation.version, fault)
            else:
                await self._tell(entry)

    async def _tell(self, evaluation: Event) -> None:
        topic = self._federation.topics.evaluations

        async def write(producer: Producer) -> None:
            if not self._may_tell:
                if await missing_topics(self._federation.broker, [topic]):
                    raise TopicMissing(topic_missing(topic))
                self._may_tell = True
            await emit(producer, topic, evaluation)

        try:
            await self._producer.deliver(write)
        except BrokerError as error:
            self._tells_evaluations = error.retriable
            logger.warning("what this client measured is told nobody: %s", error)

    async def update_rejected(self, sequence: int | None, error: Rejected) -> None:
        """The client did not send an update. It has no sequence if it was not even encoded."""
        which = "an update" if sequence is None else f"update {sequence}"
        logger.warning("%s was not sent: %s; going on from the newest version", which, error.detail)
        reason = str(error.reason)
        await self._emit_settled(
            self._event(EventKind.UPDATE_REJECTED, sequence=sequence, reason=reason, detail=error.detail)
        )

    def _event(self, kind: EventKind, **data: object) -> Event:
        return self._federation.event(kind, Role.CLIENT, client_id=self._client_id, **data)

    async def _emit_settled(self, entry: Event) -> None:
        """Emit what is settled already: a stop that comes first must not make it look undone."""
        try:
            await self._emit(entry)
        except BrokerError as error:
            logger.warning("the event %s was not sent: %s", entry.kind, error)

    async def _emit(self, entry: Event) -> None:
        await self._producer.deliver(partial(emit, topic=self._federation.topics.events, entry=entry))


def _tellable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """As many as readers take, with names that they take. None: not finite."""
    named = {name: value if isfinite(value) else None for name, value in metrics.items() if len(name) <= MOST_NAME}
    told = dict(islice(named.items(), MOST_METRICS))
    if len(told) < len(metrics):
        logger.warning("%d of %d metrics are told: names are too many or too long", len(told), len(metrics))
    return told
