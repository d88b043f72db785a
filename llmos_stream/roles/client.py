"""A client's side of the protocol: the newest version in, updates out. It knows nothing of training."""

import hashlib
import itertools
import logging
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from llmos_stream.broker import Broker, Producer, Reader, Topics
from llmos_stream.codec import ErrorFeedback, Layout, encode, payload_digest, spec_of
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, FederationFinished, OffsetGone, TaskError
from llmos_stream.roles.client_state import ClientState
from llmos_stream.roles.control import ControlView, RunEnd
from llmos_stream.roles.delivery import Delivery
from llmos_stream.roles.events import emit, event
from llmos_stream.roles.versions import Version, fetch_version
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.types import Event, EventKind, UpdateHead
from llmos_stream.wire import message_id, pack_prelude, split

log = logging.getLogger(__name__)

ROLE = "client"
_FETCH_SECONDS = 120.0
_CATCH_UP_SECONDS = 60.0
_FIRST_LOOK_SECONDS = 0.05
_LAST_LOOK_SECONDS = 2.0
_REST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Published:
    """An update that the log has acknowledged."""

    head: UpdateHead
    sent_bytes: int
    raw_bytes: int
    encode_seconds: float


class Client:
    """One client of a federation; use as an async context manager, then `newest` and `publish` in turn."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        client_id: str,
        layout: Layout,
        state: ClientState,
        offload: Offload,
        shutdown: Shutdown,
    ) -> None:
        self._broker = broker
        self._delivery = Delivery(broker, shutdown)
        self._shutdown = shutdown
        self._settings = settings
        self._topics = Topics(settings.federation.name)
        self.client_id = client_id
        self._layout = layout
        self._state = state
        self._offload = offload
        self._codec = spec_of(settings.codec)
        lossy = settings.codec.name != "float32"
        self._feedback = ErrorFeedback(layout.numel) if lossy and settings.codec.error_feedback else None
        self._encoding = threading.Lock()
        self._stack = AsyncExitStack()
        self._models: Reader
        self._control: ControlView

    @property
    def finished(self) -> RunEnd | None:
        """Why the run has ended, as far as this client has heard."""
        return self._control.finished

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._delivery)
            self._models = await stack.enter_async_context(self._broker.reader([self._topics.models], start="latest"))
            reader = await stack.enter_async_context(self._broker.reader([self._topics.control], start="earliest"))
            self._control = ControlView(reader)
            await self._control.catch_up(_CATCH_UP_SECONDS)
            if (
                self._feedback is not None
                and (residual := await self._offload.run(self._state.load_residual)) is not None
            ):
                self._feedback.residual = residual
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def join(self, num_examples: int | None) -> None:
        """Tell the federation that this client takes part."""
        joined = event(EventKind.CLIENT_JOINED, ROLE, client_id=self.client_id, num_examples=num_examples)
        await self._emit(joined)

    async def leave(self, reason: str, updates: int) -> None:
        """Tell the federation that this client goes. Nobody waits for one that cannot say so."""
        left = event(EventKind.CLIENT_LEFT, ROLE, client_id=self.client_id, reason=reason, updates=updates)
        await self._emit(left)

    async def rest(self, seconds: float) -> bool:
        """Let time pass. False when the run has ended or a stop was asked for meanwhile."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0 and not (self.finished or self._shutdown.requested):
            await self._control.poll(min(left, _REST_SECONDS))
        return not (self.finished or self._shutdown.requested)

    async def newest(self, above: int | None, seconds: float) -> Version | None:
        """The newest version above `above`; None when there is none after `seconds`, at shutdown or at the end."""
        await self._control.newer_than(above, seconds, self._shutdown)
        pointer = self._control.latest
        if self._shutdown.requested or pointer is None or (above is not None and pointer.version <= above):
            return None
        try:
            version = await fetch_version(
                self._models,
                self._topics.models,
                pointer,
                wire=self._settings.wire,
                offload=self._offload,
                timeout_seconds=_FETCH_SECONDS,
            )
        except OffsetGone:
            # Retention overtook the pointer: a newer one is on its way or already there.
            await self._control.catch_up(_CATCH_UP_SECONDS)
            if self._control.latest == pointer:
                raise
            return await self.newest(above, seconds)
        if version.layout.digest != self._layout.digest:
            raise ConfigError(
                "task.entry, task.share: this client's shared tensors are not the federation's "
                f"({_difference(self._layout, version.layout)})"
            )
        return version

    async def publish(
        self,
        delta: Tensor,
        base_version: int,
        *,
        num_examples: int,
        metrics: Mapping[str, float],
        train_seconds: float,
    ) -> Published:
        """Encode `delta` (flat, float32) and send it; returns when the log has acknowledged it.

        Raises FederationFinished when the run has ended, TaskError when the delta is not finite.
        """
        if self.finished:
            raise FederationFinished(f"the run has ended: {self.finished.reason}")
        begun = perf_counter()
        sequence = await self._offload.run(self._state.take_sequence)
        parts = await self._offload.run(self._encode, delta, sequence)
        head = UpdateHead(
            client_id=self.client_id,
            sequence=sequence,
            base_version=base_version,
            num_examples=num_examples,
            layout_digest=self._layout.digest,
            codec=self._codec,
            payload_size=sum(map(len, parts)),
            payload_digest=await self._offload.run(payload_digest, parts),
            metrics=metrics,
        )
        encode_seconds = perf_counter() - begun
        prelude = pack_prelude(head)
        await self._send(head, prelude, parts)
        if self._feedback is not None:
            self._feedback.commit()
            await self._offload.run(self._state.save_residual, self._feedback.residual)
        published = Published(head, len(prelude) + head.payload_size, 4 * self._layout.numel, encode_seconds)
        await self._tell(published, train_seconds)
        return published

    async def _send(self, head: UpdateHead, prelude: bytes, parts: list[bytes]) -> None:
        """Send until acknowledged. A repeat carries the same sequence, so it can only be counted once."""
        attempts = itertools.count()

        async def write(producer: Producer) -> None:
            records = split(
                prelude,
                parts,
                payload_size=head.payload_size,
                # An id of its own, so that chunks of an earlier attempt are not taken for chunks of this one.
                message_id=message_id(self.client_id, head.sequence, next(attempts)),
                chunk_bytes=self._settings.wire.chunk_bytes,
            )
            await producer.send_all(self._topics.updates, records, key=self.client_id.encode())

        await self._delivery.deliver(write)

    def _encode(self, delta: Tensor, sequence: int) -> list[bytes]:
        if not bool(torch.isfinite(delta).all()):
            raise TaskError("training made weights that are not finite; lower client.lr")
        level, generator = self._settings.codec.zstd_level, _generator(self.client_id, sequence)
        if self._feedback is None:
            return list(encode(delta, self._codec, level=level, generator=generator))
        # A publish that was cancelled may still be encoding in its thread, for nothing.
        with self._encoding:
            self._feedback.rollback()
            return self._feedback.encode(delta, self._codec, level=level, generator=generator)

    async def _emit(self, entry: Event) -> None:
        await self._delivery.deliver(partial(emit, topic=self._topics.events, entry=entry))

    async def _tell(self, published: Published, train_seconds: float) -> None:
        head = published.head
        sent = event(
            EventKind.UPDATE_SENT,
            ROLE,
            client_id=self.client_id,
            sequence=head.sequence,
            base_version=head.base_version,
            num_examples=head.num_examples,
            raw_bytes=published.raw_bytes,
            sent_bytes=published.sent_bytes,
            train_seconds=train_seconds,
            encode_seconds=published.encode_seconds,
            metrics=dict(head.metrics),
        )
        await self._emit(sent)


async def wait_for_topics(broker: Broker, topics: Topics, shutdown: Shutdown) -> bool:
    """Wait until the federation's aggregator has made its topics. False when a stop came and there are still none."""
    pause = _FIRST_LOOK_SECONDS
    while not {topic.name for topic in await broker.list_topics(f"{topics.federation}.")} >= set(topics.names):
        if shutdown.requested:
            return False
        if pause == _LAST_LOOK_SECONDS:
            log.info("waiting for federation %s: it has no topics yet", topics.federation)
        await shutdown.wait(pause)
        pause = min(2 * pause, _LAST_LOOK_SECONDS)
    return True


def _generator(client_id: str, sequence: int) -> torch.Generator:
    """Randomness for stochastic rounding, the same whenever the same update is encoded."""
    seed = hashlib.blake2b(f"{client_id}\0{sequence}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def _difference(mine: Layout, theirs: Layout) -> str:
    here, there = ({spec.name: spec for spec in layout.tensors} for layout in (mine, theirs))
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            return f"{name}: {here.get(name, 'absent')} here, {there.get(name, 'absent')} there"
    return "another order"
