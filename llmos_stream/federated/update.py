"""One update of a client, made by the caller's own code: from the newest version to what is sent of it."""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, SupportsIndex

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.errors import FederationFinished, Rejected, TaskError
from llmos_stream.federated.membership import Membership
from llmos_stream.log.versions import Version
from llmos_stream.roles.client import Published
from llmos_stream.telemetry.tracing import Tracer, span, tracing_to
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.training.shared_model import Trained
from llmos_stream.training.site_evaluator import SiteEvaluator
from llmos_stream.wire.fields import MAX_NAME_CHARS
from llmos_stream.wire.head import MAX_METRICS


class Shared(Protocol):
    """What is trained, seen as one flat vector."""

    @property
    def layout(self) -> Layout: ...

    def begin(self, weights: Tensor, version: int) -> Tensor:
        """Take a version in, and return what became of it in the dtypes that are there."""
        ...

    def change(self, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What training has made of the version `weights`, which `begin` answered with `base`."""
        ...


class Start(NamedTuple):
    """What an update begins with: a version, and what the model made of it."""

    version: Version
    base: Tensor


@dataclass
class Joined:
    """A client that takes part: as whom, with what, and where its spans go."""

    membership: Membership
    shared: Shared
    tracer: Tracer | None
    evaluator: SiteEvaluator | None = None
    """Measures versions on this site's own validation data, where it has some."""
    keep: Callable[[], None] | None = None
    """Keeps what training has made of what is not shared."""
    under_way: "Update | None" = None
    """The update that has begun and not ended."""

    def measure(self, version: Version, *, is_last: bool) -> Evaluation | None:
        """Measure a version where it is due; the one that the run ended with in any case."""
        evaluator, number = self.evaluator, version.head.number
        if evaluator is None or not (evaluator.is_new(number) if is_last else evaluator.is_due(number)):
            return None
        return evaluator.measure(number, version.weights)

    def newest(self) -> Version:
        """The newest version; while an update is under way the one that it began with."""
        if self.under_way is not None and (start := self.under_way.start) is not None:
            return start.version
        with tracing_to(self.tracer):
            return self.membership.run(self.membership.newest())


class Update:
    """An update in the making; use it as a context manager, or an asynchronous one.

    When the block begins, the newest version is in the model. The block trains, in whatever way, and says on how many
    examples. When it ends, the difference is sent. After an exception, or `skip`, nothing is sent, and the next update
    begins from the newest version again.

    Once the run has ended, `finished` says why, the model has the newest version, and nothing is sent: leave the loop.
    """

    def __init__(self, joined: Joined, owner: object) -> None:
        """`owner` would leave the federation if nobody held it."""
        self.version: int
        """The number of the version that the block began with."""
        self.num_examples: SupportsIndex | None = None
        """On how many examples the block has trained: the weight of the update. It must be set."""
        self.metrics: dict[str, Any] = {}
        """What the block has measured, by name: numbers, or tensors of one number."""
        self.finished: str | None = None
        """Why the run has ended; None while it goes on."""
        self.sequence: int | None = None
        """The update's number among those of this client, once it was sent."""
        self.sent_bytes = 0
        """The bytes that were sent."""
        self.raw_bytes = 0
        """What those would be as float32."""
        self.seconds = 0.0
        """How long the block took."""
        self.rejected: str | None = None
        """Why the update was not sent, although the block made one: too many versions came meanwhile."""
        self.evaluation: Evaluation | None = None
        """What the version reached on this site's own validation data, where it was measured."""
        self.start: Start | None = None
        """What it began with; None before and after."""
        self._joined = joined
        self._owner = owner
        self._has_begun = False
        self._begun_at = 0.0
        # Spans are entered here, and not around the block: what the caller does is not ours to trace.
        with tracing_to(joined.tracer):
            self._context = copy_context()
        self._span, self._training = ExitStack(), ExitStack()

    def begin(self) -> None:
        """Put the newest version into the model, as soon as the policy allows it. The context manager calls it.

        Raises:
            BrokerUnavailable: the federation has no version at all.
            TaskError: the model cannot hold the version, or another update is under way.
        """
        membership = self._joined.membership
        with self._beginning():
            version = self._context.run(membership.run, membership.next_version())
            self.evaluation = self._joined.measure(version, is_last=membership.finished is not None)
            if self.evaluation is not None:
                self._context.run(membership.run, membership.tell(self.evaluation))
            start = membership.run(membership.start_from(version))
            self._take(version, self._joined.shared.begin(start, version.head.number))

    async def abegin(self) -> None:
        """As `begin`, for callers in an event loop."""
        membership, joined = self._joined.membership, self._joined
        with self._beginning():
            version = await self._context.run(membership.awaited, membership.next_version())
            is_last = membership.finished is not None
            self.evaluation = await asyncio.to_thread(joined.measure, version, is_last=is_last)
            if self.evaluation is not None:
                await self._context.run(membership.awaited, membership.tell(self.evaluation))
            start = await membership.awaited(membership.start_from(version))
            self._take(version, await asyncio.to_thread(joined.shared.begin, start, version.head.number))

    def send(self) -> None:
        """Send the difference between the model and the version. The context manager calls it, unless you have.

        Raises:
            TaskError: `num_examples` is missing, a metric is no number, or a weight is not finite. The update is still
                under way.
        """
        if (start := self._started()) is None:
            return
        membership = self._joined.membership
        trained = self._trained(start)
        try:
            self._settle(self._context.run(membership.run, membership.publish(trained)))
        except (Rejected, FederationFinished) as error:
            self._give_up(error)
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    async def asend(self) -> None:
        """As `send`, for callers in an event loop."""
        if (start := self._started()) is None:
            return
        membership = self._joined.membership
        trained = await asyncio.to_thread(self._trained, start)
        try:
            self._settle(await self._context.run(membership.awaited, membership.publish(trained)))
        except (Rejected, FederationFinished) as error:
            self._give_up(error)
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    def skip(self) -> None:
        """Send nothing: what the block has trained is forgotten."""
        if self._started() is not None:
            self._end()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self._end(error)
            return
        try:
            self.send()
        except BaseException as failure:
            self._end(failure)
            raise

    async def __aenter__(self) -> Self:
        await self.abegin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None:
            self._end(error)
            return
        try:
            await self.asend()
        except BaseException as failure:
            self._end(failure)
            raise

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """Let no other update begin meanwhile, nor before the end of this one, if anything comes of it."""
        if self._has_begun:
            raise TaskError("this update has begun before: ask for a new one")
        if self._joined.under_way is not None:
            raise TaskError("an update is under way: leave its block, or skip() it, before the next begins")
        self._has_begun, self._joined.under_way = True, self
        try:
            yield
        finally:
            if self.start is None:
                self._joined.under_way = None

    def _started(self) -> Start | None:
        """What it began with; None where nothing more can come of it."""
        if not self._has_begun:
            raise TaskError("this update has not begun: use it as `with fl.update() as update:`")
        return self.start

    def _take(self, version: Version, base: Tensor) -> None:
        membership = self._joined.membership
        self.version, self.finished = version.head.number, membership.finished
        if self.finished:
            return
        self.start = Start(version, base)
        self._context.run(self._enter_spans, version)
        self._begun_at = membership.clock.monotonic()

    def _enter_spans(self, version: Version) -> None:
        self._span.enter_context(self._joined.membership.update_span(version))
        self._training.enter_context(span("client.train"))

    def _trained(self, start: Start) -> Trained:
        """The update, as the model is now."""
        self.seconds = self._joined.membership.clock.monotonic() - self._begun_at
        num_examples, metrics = _examples(self.num_examples), _numbers(self.metrics)
        delta, buffers = self._joined.shared.change(start.base, start.version.weights)
        if self._joined.keep is not None:
            self._joined.keep()
        self._context.run(self._training.close)
        return Trained(delta, self.version, num_examples, metrics, self.seconds, buffers=buffers)

    def _settle(self, published: Published) -> None:
        self.sequence = published.head.sequence
        self.sent_bytes, self.raw_bytes = published.sent_bytes, published.raw_bytes

    def _give_up(self, error: Rejected | FederationFinished) -> None:
        if isinstance(error, Rejected):
            self.rejected = str(error)
        else:
            self.finished = self._joined.membership.finished or str(error)

    def _end(self, error: BaseException | None = None) -> None:
        """Nothing more comes of it."""
        if self.start is None:
            return
        self.start = None
        if self._joined.under_way is self:
            self._joined.under_way = None
        for entered in (self._training, self._span):
            self._context.run(entered.__exit__, None if error is None else type(error), error, None)


def _examples(value: SupportsIndex | None) -> int:
    if value is None:
        raise TaskError("update.num_examples is not set: say on how many examples the block has trained")
    if isinstance(value, bool) or not hasattr(value, "__index__") or (number := value.__index__()) < 1:
        raise TaskError(f"update.num_examples is {value!r:.40}, which is no number of examples")
    return number


def _numbers(metrics: Mapping[Any, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if len(metrics) > MAX_METRICS:
        raise TaskError(f"update.metrics has {len(metrics)} names; an update carries {MAX_METRICS}")
    for name, value in metrics.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise TaskError(f"update.metrics[{name!r:.40}]: a name is 1 to {MAX_NAME_CHARS} printable characters")
        try:
            found[name] = number = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            raise TaskError(f"update.metrics[{name!r:.40}] is no number but a {type(value).__name__}") from None
        if not math.isfinite(number):
            raise TaskError(f"update.metrics[{name!r:.40}] is {number}: nothing was sent")
    return found
