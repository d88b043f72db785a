"""Answers many requests at once, each by the version with which it began.

Each turn takes in the requests that wait, as long as their prompts are short, and makes a token for all requests of one
version; versions take turns. A request holds the weights of its version until its last token, and what attention keeps
is that version's alone: so an answer is never of two versions, whatever is swapped meanwhile. Requests begin in the
order in which they came.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from torch import Tensor

from llmos_stream.config import InferenceSettings
from llmos_stream.errors import LlmosError
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.generation.sampling import Chosen, Sampler, Sampling
from llmos_stream.inference.generation.spoken import Spoken
from llmos_stream.inference.model_pool import LoadedModel
from llmos_stream.runtime import Offload
from llmos_stream.training.llm.decoding import Decoder
from llmos_stream.training.llm.prompts import Prompts, ends_of
from llmos_stream.training.llm.versions import VersionedModel

logger = logging.getLogger(__name__)

_PASS_TOKENS = 512
"""Tokens of prompts in one pass, where it has more than one prompt: who is being answered waits for it."""


class Busy(LlmosError):
    """Too many requests wait; ask again in a moment."""

    retriable = True


class GenerationFailed(LlmosError):
    """The model did not give an answer; the message names the version."""


class Gone(LlmosError):
    """Who asked has left."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: the tokens of its prompt, and how it is to be continued."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()

    @property
    def places(self) -> int:
        """Most tokens that attention keeps of it."""
        return len(self.prompt) + self.max_tokens


class Piece(NamedTuple):
    """More of an answer: a token, and the text that is certain with it. The last piece says why it is the last.

    The token that says that the answer has ended is not told.
    """

    text: str
    chosen: Chosen | None
    finish: str | None = None


class Reply:
    """An answer as it comes. Whoever asked must `leave` in the end."""

    def __init__(self, model: LoadedModel, ask: Ask, spoken: Spoken) -> None:
        self.model = model
        self.ask = ask
        self.tokens = 0
        """How many tokens have been made."""
        self.left = False
        self._spoken = spoken
        self._sampler = Sampler(ask.sampling)
        self._pieces: asyncio.Queue[Piece | LlmosError] = asyncio.Queue()
        self._asked = perf_counter()
        self.last = -1
        """The newest token."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of the answer, to the last one.

        Raises:
            GenerationFailed: The model gave no answer.
            Busy: The process stops.
            Gone: Who asked has left.
        """
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, LlmosError):
                raise piece
            yield piece
            if piece.finish is not None:
                return

    def leave(self) -> None:
        """No more of the answer is needed."""
        if not self.left:
            self.left = True
            self._pieces.put_nowait(Gone("who asked has left"))

    def put(self, piece: Piece | LlmosError) -> None:
        """Give the next piece. The event loop's thread alone may do so."""
        self._pieces.put_nowait(piece)

    def take(self, logits: Tensor, ends: frozenset[int]) -> Piece:
        """Choose the next token, in the thread that works."""
        chosen = self._sampler.choose(logits)
        self.last = chosen.token
        self.tokens += 1
        if chosen.token in ends:
            return Piece(self._spoken.end(), None, "stop")
        text = self._spoken.add(chosen.token)
        if self._spoken.has_stopped():
            return Piece(text, chosen, "stop")
        if self.tokens < self.ask.max_tokens:
            return Piece(text, chosen)
        text += self._spoken.end()  # where a stop may be found yet
        return Piece(text, chosen, "stop" if self._spoken.has_stopped() else "length")

    @property
    def seconds(self) -> float:
        """Since it was asked."""
        return perf_counter() - self._asked


class _Group:
    """The requests of one version, row by row."""

    def __init__(self, model: LoadedModel, decoder: Decoder) -> None:
        self.model = model
        self.decoder = decoder
        self.rows: list[Reply] = []

    def places(self, *more: Reply) -> int:
        """Most places that attention keeps for all of them, with those of `more`."""
        rows = (*self.rows, *more)
        return len(rows) * max((one.ask.places for one in rows), default=0)


_Told = list[tuple[Reply, Piece | LlmosError]]


class Generator:
    """Answers requests while `run` runs. `observe` gets the number of requests of each step."""

    def __init__(
        self,
        settings: InferenceSettings,
        model: VersionedModel,
        offload: Offload,
        metrics: GenerationMetrics,
        observe: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._prompts = Prompts(model.tokenizer)
        self._ends = ends_of(model.model, model.tokenizer)
        self._offload = offload
        self._metrics = metrics
        self._observe = observe
        self._queue: deque[Reply] = deque()
        self._groups: dict[LoadedModel, _Group] = {}
        self._joining: list[Reply] = []  # neither waits any more nor has a row yet
        self._changed = asyncio.Event()
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(len(group.rows) for group in self._groups.values())

    def ask(self, model: LoadedModel, ask: Ask) -> Reply:
        """Begin an answer.

        Raises:
            Busy: Too many requests wait.
        """
        self._forget_gone()
        if self._stopped or len(self._queue) >= self._settings.max_waiting:
            raise Busy("stopping" if self._stopped else "too many requests are waiting; ask again in a moment")
        reply = Reply(model, ask, Spoken(self._prompts.said, ask.stops))
        self._queue.append(reply)
        self._changed.set()
        return reply

    async def run(self) -> None:
        """Answer until cancelled, and refuse then what is not answered."""
        try:
            while True:
                for group, joining in self._turns():
                    self._tell(group, await self._offload.run(self._turn, group, joining))
                self._joining = []
                if not self._groups:
                    self._changed.clear()
                    if not self._queue:
                        await self._changed.wait()
        finally:
            self._stopped = True
            rows = (row for group in self._groups.values() for row in group.rows)
            for reply in dict.fromkeys((*self._queue, *self._joining, *rows)):
                reply.put(Busy("stopping"))

    def _turns(self) -> list[tuple[_Group, list[Reply]]]:
        """A turn for each version, the requests that begin with it among them."""
        self._forget_gone()
        joining = self._joining = self._next()
        return [
            (group, joining if joining and joining[0].model is group.model else []) for group in self._groups.values()
        ]

    def _next(self) -> list[Reply]:
        """Take the oldest requests of one version out of the queue, as many as there is room for."""
        taken: list[Reply] = []
        while self._queue and self.running + len(taken) < self._settings.max_batch:
            first = self._queue[0]
            longest = max(len(one.ask.prompt) for one in (*taken, first))
            if taken and (first.model is not taken[0].model or longest * (len(taken) + 1) > _PASS_TOKENS):
                break
            group = self._groups.get(first.model)
            others = sum(one.places() for one in self._groups.values() if one is not group)
            own = _Group(first.model, Decoder(self._model.model)) if group is None else group
            if self._groups and others + own.places(*taken, first) > self._settings.cache_tokens:
                break
            self._groups[first.model] = own
            taken.append(self._queue.popleft())
        return taken

    def _forget_gone(self) -> None:
        if any(one.left for one in self._queue):
            self._queue = deque(one for one in self._queue if not one.left)

    def _tell(self, group: _Group, told: _Told) -> None:
        for reply, piece in told:
            if isinstance(piece, Piece):
                self._metrics.made(1)
                if reply.tokens == 1:
                    self._metrics.begun(len(reply.ask.prompt), reply.seconds)
            reply.put(piece)
        if told:
            self._observe(len(told))
        if not group.rows:
            del self._groups[group.model]

    def _turn(self, group: _Group, joining: list[Reply]) -> _Told:
        """Let those go that have left, take some in, and make a token for each."""
        self._keep(group, [row for row, reply in enumerate(group.rows) if not reply.left])
        self._model.use(group.model.model)
        told = self._step(group)
        if staying := [reply for reply in joining if not reply.left]:
            told += self._join(group, staying)
        ended = {id(reply) for reply, piece in told if isinstance(piece, LlmosError) or piece.finish is not None}
        self._keep(group, [row for row, reply in enumerate(group.rows) if id(reply) not in ended])
        return told

    def _step(self, group: _Group) -> _Told:
        if not group.rows:
            return []
        try:
            logits = group.decoder.step([reply.last for reply in group.rows])
        except Exception as error:  # noqa: BLE001 (whatever a model raises concerns its requests only)
            told: _Told = [(reply, _failed(group, error)) for reply in group.rows]
            self._keep(group, [])
            return told
        return [(reply, self._take(group, reply, row)) for reply, row in zip(group.rows, logits, strict=True)]

    def _join(self, group: _Group, replies: list[Reply]) -> _Told:
        try:
            logits = group.decoder.join([reply.ask.prompt for reply in replies])
        except Exception as error:  # noqa: BLE001
            if len(replies) == 1:
                return [(replies[0], _failed(group, error))]
            return [told for reply in replies for told in self._join(group, [reply])]  # one's prompt is not all's fault
        group.rows += replies
        return [(reply, self._take(group, reply, row)) for reply, row in zip(replies, logits, strict=True)]

    def _take(self, group: _Group, reply: Reply, logits: Tensor) -> Piece | LlmosError:
        try:
            return reply.take(logits, self._ends)
        except Exception as error:  # noqa: BLE001
            return _failed(group, error)

    @staticmethod
    def _keep(group: _Group, rows: list[int]) -> None:
        group.decoder.keep(rows)
        group.rows = [group.rows[row] for row in rows]


def _failed(group: _Group, error: Exception) -> GenerationFailed:
    version = group.model.version
    # Not the error's text: it may hold the request's data.
    logger.error("version %d failed on a request: %s", version, type(error).__name__)
    return GenerationFailed(f"version {version} failed; ask for another version, or look at the log of this process")
