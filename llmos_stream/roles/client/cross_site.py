"""What sites train alone, measured at each other: shares this site's, and measures those of others that do so too.

Nothing is decided by it. Each site's newest model is kept until it is measured, in the store of messages that are on
their way (`wire.memory_bytes`, then a file). Between two updates a few of them are measured, and each site's at most
once in `share_local_every` versions, so that nobody can keep this site busy.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from torch import Tensor

from llmos_stream.broker import Producer
from llmos_stream.broker.rules import topic_missing
from llmos_stream.config import ClientSettings
from llmos_stream.errors import BrokerError, Reason, Rejected, TaskError, TopicMissing
from llmos_stream.log.admission import head_of, topic_assembler
from llmos_stream.log.federation import Federation
from llmos_stream.log.local_models import (
    admit_local_model,
    decode_local_model,
    encode_local_model,
    local_model_records,
)
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.stream import MessageStream, foreign, go_on
from llmos_stream.log.topics import missing_topics
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.events import Trainer
from llmos_stream.roles.client.held_models import HeldModels
from llmos_stream.roles.client.session import Client
from llmos_stream.storage.spool import Spools
from llmos_stream.training import task_errors
from llmos_stream.training.shared_model import SharedModel, Trained
from llmos_stream.training.site_evaluator import SiteEvaluator, is_due
from llmos_stream.types import LocalModelHead
from llmos_stream.wire import Message, Parts

logger = logging.getLogger(__name__)

_READ_SECONDS = 2.0
_POLL_SECONDS = 0.2
_TOPIC_SECONDS = 3.0
_LOOK_SECONDS = 0.2


class CrossSite:
    """One client's part in it, kept while connections come and go."""

    def __init__(
        self,
        federation: Federation,
        settings: ClientSettings,
        local: SharedModel,
        evaluator: SiteEvaluator | None,
        entry: str,
    ) -> None:
        """`evaluator` measures what others have trained; None: this site only shares. `entry` names the task."""
        self._federation = federation
        self._every = settings.share_local_every
        self._skips_own = settings.train_alone  # it is measured where it is trained
        self._wire = wire = federation.wire
        self._local = local
        self._evaluator = evaluator
        self._entry = entry
        self._spools = Spools(wire.memory_bytes, wire.spool_dir)
        self._shared_at: int | None = None
        self._ready: tuple[LocalModelHead, Parts] | None = None
        self._held = HeldModels(self._every, wire.pending_bytes)
        self._producer: RetryingProducer | None = None
        self._stream: MessageStream | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Within the block it shares, and hears what others share from now on; as far as this client may."""
        federation, topic = self._federation, self._federation.topics.locals
        async with AsyncExitStack() as stack:
            try:
                if not await self._is_there(topic):
                    raise TopicMissing(topic_missing(topic))
                self._producer = await stack.enter_async_context(federation.producer())
                if self._evaluator is not None:
                    reader = await stack.enter_async_context(federation.reader(topic, "latest"))
                    assembler = topic_assembler(admit_local_model(self._local.layout), self._wire, hashes=True)
                    self._stream = MessageStream(
                        reader, assembler, clock=federation.clock, on_gap=go_on("models of other sites")
                    )
            except BrokerError as error:
                logger.warning("client.share_local: going on without the models of sites: %s", error)
            try:
                yield
            finally:
                self._producer = self._stream = None

    async def _is_there(self, topic: str) -> bool:
        """All topics are made at once, but Kafka may know of this one a moment after those that this client needs."""
        clock = self._federation.clock
        deadline = clock.monotonic() + _TOPIC_SECONDS
        while await missing_topics(self._federation.broker, [topic]):
            if clock.monotonic() >= deadline or self._federation.shutdown.requested:
                return False
            await clock.sleep(_LOOK_SECONDS)
        return True

    async def keep(self, client: Client, number: int, since: int, weights: Callable[[], Tensor]) -> None:
        """Take what the training on version `number` has made, begun with version `since`, where its turn has come."""
        if self._producer is None or not is_due(number, self._shared_at, self._every):
            return
        self._shared_at = number
        self._ready = await self._federation.run(
            lambda: encode_local_model(
                client.client_id, number, since, self._local.layout, weights(), self._spools.new()
            )
        )

    async def send(self) -> None:
        """Share what was kept. Where that fails this client goes on without."""
        if self._producer is None or self._ready is None:
            return
        (head, parts), self._ready = self._ready, None

        async def write(producer: Producer) -> None:
            records = local_model_records(head, parts, self._wire.chunk_bytes, secrets.randbits(64))
            await producer.send_all(self._federation.topics.locals, records, key=head.client_id.encode())

        try:
            await self._producer.deliver(write)
            logger.info("shared what was trained here alone since version %d, %d bytes", head.since, head.payload_size)
        except BrokerError as error:
            logger.warning("client.share_local: what was trained here was not shared: %s", error)
            if not error.retriable:
                self._producer = None
        finally:
            parts.close()

    async def measure(self, client: Client, version: Version, *, is_last: bool = False) -> None:
        """Measure what is new of other sites, as far as its turn has come; after the `is_last` version all of it."""
        if self._stream is None or self._evaluator is None:
            return
        self._held.note(contribution.client_id for contribution in version.head.manifest)
        await self._read(client)
        newest = max(version.head.number, client.heard().newest or 0)
        for message in self._held.drop_impossible(newest):
            self._pass_over(message, "it names a version that there is not")
        for message in self._held.due(newest, all_of_them=is_last):
            if not self._federation.shutdown.requested:
                await self._measure(client, message, self._evaluator)

    async def _measure(self, client: Client, message: Message, evaluator: SiteEvaluator) -> None:
        head = head_of(LocalModelHead, message)
        try:
            weights = await self._federation.run(decode_local_model, message, self._local.layout)
            with task_errors(self._entry):
                found = await self._federation.run(evaluator.measure, head.version, weights)
        except (Rejected, TaskError) as error:  # a task may well fail on weights like these
            self._pass_over(message, str(error))
            return
        if found is not None:
            await client.events.measured(found, Trainer(head.client_id, head.since))

    def _pass_over(self, message: Message, why: str) -> None:
        head = head_of(LocalModelHead, message)
        foreign(self._federation.topics.locals, message.first_offset, f"what {head.client_id} has trained: {why}")

    async def _read(self, client: Client) -> None:
        """Take in what has come, for a while at most: what is left comes next time."""
        stream, clock = self._stream, self._federation.clock
        if stream is None:
            return
        deadline = clock.monotonic() + _READ_SECONDS
        try:
            while await _has_more(stream) and clock.monotonic() < deadline:
                for outcome in await stream.batch(_POLL_SECONDS, self._federation.offload):
                    if isinstance(outcome, Message):
                        self._take(client, outcome)
                    elif outcome.reason is not Reason.MISSING_CHUNK:  # what began before this client did
                        foreign(self._federation.topics.locals, outcome.offset, outcome.detail)
        except BrokerError as error:
            if not error.retriable:
                logger.warning("client.share_local: going on without the models of other sites: %s", error)
                self._stream = None

    def _take(self, client: Client, message: Message) -> None:
        if self._skips_own and head_of(LocalModelHead, message).client_id == client.client_id:
            message.parts.close()
        elif not self._held.take(message):
            logger.debug("there is no room for the model at offset %d: it is passed over", message.first_offset)


async def _has_more(stream: MessageStream) -> bool:
    """Whether something is there that has not been read, as far as the broker answers in time."""
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return not await stream.at_end()
    except TimeoutError:
        return False


def weights_after(local: SharedModel, version: Version, trained: Trained) -> Tensor:
    """The weights (flat) that a training has made of a version: what its update says, before the codec, and no more."""
    weights = version.weights.clone()
    parameters, values = local.layout.parts(weights)
    parameters.add_(trained.delta)
    if trained.buffers is not None:
        values.copy_(trained.buffers)
    return weights
