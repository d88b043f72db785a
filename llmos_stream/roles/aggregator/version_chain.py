"""The aggregator's end of the chain of versions: which version is written in full, and what the others say.

Every `versions.full_every`-th version is full, and so is one that a delta cannot say. Between two full versions
each is a delta on its parent, so a reader needs the newest full one and all that came after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.codec import DeltaEncoding, Layout, begin_delta, delta_codec
from llmos_stream.config import VersionSettings
from llmos_stream.core import NewVersion, Rule
from llmos_stream.core.rule import adapted
from llmos_stream.log.own_versions import remember
from llmos_stream.log.snapshots import EncodedSnapshot, Owed, pay, residual_messages
from llmos_stream.log.versions import (
    ROLLED_BACK_TO,
    STARTED_FROM,
    Origin,
    Version,
    delta_version,
    encode_version,
    started_from,
)
from llmos_stream.runtime import Offload, run_all
from llmos_stream.storage.spool import Spools
from llmos_stream.types import VersionHead
from llmos_stream.wire import Parts, head_digest
from llmos_stream.wire.control import Pointer


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A version's message, and the weights that its readers will have.

    `residuals` are what is owed after it, `full` is the version it stands on; none and None for a full one.
    """

    head: VersionHead
    parts: Parts
    weights: Tensor
    residuals: Sequence[EncodedSnapshot] = ()
    full: Pointer | None = None


class Chain:
    """Knows what readers hold: the newest version's weights, what they are owed, and where its full version lies."""

    def __init__(self, settings: VersionSettings, rule: Rule, layout: Layout, spools: Spools, offload: Offload) -> None:
        self._every = settings.full_every
        self._codec = delta_codec(settings)
        self._rule = rule.record()
        self._started_from: Mapping[str, object] | None = None
        self._layout = layout
        self._spools = spools
        self._offload = offload
        self._weights: Tensor | None = None
        self._owed: Owed = {}
        self._full: Pointer | None = None
        self._digest = bytes(32)

    def begin(self, origin: Mapping[str, object] | None) -> None:
        """Record with every version where the weights of version 0 are from."""
        self._started_from = origin

    def resume(self, newest: Version, owed: Owed, full: Pointer) -> None:
        """Go on from the newest version in the log."""
        self._weights, self._owed, self._full, self._digest = newest.weights, owed, full, newest.digest
        remember(newest.digest, newest.weights)
        self.begin(started_from(newest.head))

    def take_back(self, weights: Tensor, owed: Owed, full: Pointer | None) -> None:
        """Readers still have the version before the one that was encoded last, as it was."""
        self._weights, self._owed, self._full = weights, owed, full

    @property
    def newest(self) -> tuple[Tensor | None, Pointer | None]:
        """The weights that readers have, and the full version that they stand on."""
        return self._weights, self._full

    async def encode(self, new: NewVersion, time_ms: int, equals: int | None = None) -> Encoded:
        """The message of `new`. What its readers will have is written over the weights of `new`, and stays as it is.

        One that `equals` an older version is written in full, and nothing is owed to anybody after it.
        """
        encoded = await self._encode(new, time_ms, equals)
        remember(head_digest(encoded.head), encoded.weights)  # before anybody can have read it
        return encoded

    async def _encode(self, new: NewVersion, time_ms: int, equals: int | None) -> Encoded:
        parent, full, self._weights = self._weights, self._full, new.weights
        rule = self._rule if new.buffer_size is None else adapted(self._rule, new.buffer_size)
        rule = {**rule, "limits": new.limits} if new.limits else rule
        if self._started_from is not None:
            rule = {**rule, STARTED_FROM: self._started_from}
        if equals is not None:
            rule = {**rule, ROLLED_BACK_TO: equals}
            full, self._owed = None, {}
        origin = Origin(new.parent, new.manifest, rule, time_ms, self._digest)
        after, _ = self._layout.moving(new.weights, new.range)
        before = None if parent is None else self._layout.moving(parent, new.range)[0]
        stands_on = None if full is None else full.version
        encoding = await self._offload.run(
            begin_delta, new.number, stands_on, self._every, before, after, self._owed.get(new.range), self._codec
        )
        if encoding is None:
            return await self._offload.run(self._encode_full, new, origin)
        await run_all(*(self._offload.run(encoding.work) for _ in range(self._offload.workers)))
        return await self._offload.run(self._encode_delta, new, origin, encoding, full)

    def _encode_full(self, new: NewVersion, origin: Origin) -> Encoded:
        pay(new.weights, self._layout, self._owed)
        self._owed, self._full = {}, None
        message = encode_version(new.number, new.weights, self._layout, origin, self._spools.new(), new.range)
        return Encoded(*message, new.weights)

    def _encode_delta(self, new: NewVersion, origin: Origin, encoding: DeltaEncoding, full: Pointer | None) -> Encoded:
        parts, residual = encoding.finish()
        self._owed = {**self._owed, new.range: residual}
        delta = delta_version(new.number, new.weights, self._layout, origin, self._codec, parts, new.range)
        return Encoded(*delta, new.weights, residual_messages(new.number, self._owed, self._layout), full)

    def committed(self, head: VersionHead, pointer: Pointer) -> None:
        """The version encoded last lies there."""
        self._digest = head_digest(head)
        if pointer.full is None:
            self._full = pointer
