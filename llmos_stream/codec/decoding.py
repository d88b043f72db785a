"""Decoding by several threads at once, and slice by slice.

The frames of a payload are independent of one another. To take the next one is a matter of views, so threads do that
in order and under a lock. All the rest is done by the thread that took the frame.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from threading import Lock

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.frames import PartReader, decompress, read_frame, take_frame
from llmos_stream.codec.payload import SLICE, read_buffers
from llmos_stream.codec.quantized_form import QuantizedForm, unpacked_values
from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import Workspace, borrowed
from llmos_stream.types import CodecSpec, Part

Visit = Callable[[int, Tensor], None]
"""Called with some values, to be read only while they are in cache, and the index of the first."""
_BodyBuffer = Callable[[int, int, Workspace], Tensor]
_Put = Callable[[int, int, Tensor, Workspace], None]


class Decoding:
    """One payload being decoded: `work` in as many threads as there are to spare, then `finish`.

    `body_buffer(begin, count, workspace)` says where the body of a slice goes and `put(begin, count, body, workspace)`
    takes the body; several threads call both at once. `buffers` receives the values that follow the last slice. Of
    several errors the one that lies first in the payload is raised, so that the outcome depends on the payload alone.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        spec: CodecSpec,
        numel: int,
        body_buffer: _BodyBuffer,
        put: _Put,
        buffers: Tensor | None = None,
    ) -> None:
        self._codec = codec_for(spec)
        self._numel = numel
        self._body_buffer, self._put = body_buffer, put
        self._buffers = buffers
        self._reader = PartReader(parts)
        self._lock = Lock()
        self._next = 0
        self._failed_at: float = math.inf
        self._error: BaseException | None = None

    @property
    def slices(self) -> int:
        """How many there are: more threads than that have nothing to do."""
        return max(1, -(-self._numel // SLICE))

    def work(self) -> None:
        """Decode until nothing is left or something is wrong. Raises nothing: see `finish`."""
        zstd = zstandard.ZstdDecompressor()
        with borrowed() as workspace:
            while (taken := self._take()) is not None:
                begin, count, frame = taken
                try:
                    least, most = self._codec.bounds(count)
                    body = decompress(frame, zstd, least, most, self._body_buffer(begin, count, workspace))
                    self._put(begin, count, body, workspace)
                except BaseException as error:  # noqa: BLE001 (raised by `finish`)
                    with self._lock:
                        self._fail(begin, error)

    def finish(self) -> None:
        """Call when every `work` has returned.

        Raises:
            Rejected: As `payload.decode`, or what `put` raised.
        """
        if self._error is not None:
            raise self._error

    def _take(self) -> tuple[int, int, Part] | None:
        with self._lock:
            begin = self._next
            if self._error is not None or begin > self._numel:
                return None
            count = min(SLICE, self._numel - begin)
            try:
                if not count:
                    self._next = self._numel + 1
                    read_buffers(self._reader, self._buffers)
                    return None
                frame = take_frame(self._reader, self._codec.bounds(count)[1])
            except BaseException as error:  # noqa: BLE001 (raised by `finish`)
                self._fail(begin, error)
                return None
            self._next = begin + count
            return begin, count, frame

    def _fail(self, at: int, error: BaseException) -> None:
        if at < self._failed_at:
            self._failed_at, self._error = at, error


def prepare_quantized(
    parts: Iterable[Part],
    spec: CodecSpec,
    numel: int,
    buffer: Tensor,
    visit: Visit | None = None,
    buffers: Tensor | None = None,
) -> tuple[Decoding, QuantizedForm]:
    """Prepare to decode into the quantized form, which is whole when the decoding has finished.

    Values are computed for `visit` alone: leave it out where they are not wanted yet.

    Raises:
        ValueError: The buffer is too small.
    """
    quantized = QuantizedForm(spec, numel, buffer)

    def put(begin: int, count: int, body: Tensor, workspace: Workspace) -> None:
        quantized.put(begin, count, body, workspace)
        if visit is not None:
            for values in quantized.values_of(begin, workspace):
                visit(begin, values)
                begin += values.numel()

    return Decoding(parts, spec, numel, quantized.body_buffer, put, buffers), quantized


def prepare_visit(
    parts: Iterable[Part], spec: CodecSpec, numel: int, visit: Visit, buffers: Tensor | None = None
) -> Decoding:
    """Prepare to decode for `visit` alone, STEP elements at a time (a slice's last run may be shorter)."""
    codec = codec_for(spec)

    def body_buffer(begin: int, count: int, workspace: Workspace) -> Tensor:
        return workspace.take("slice", codec.bounds(count)[1], torch.uint8)

    def put(begin: int, count: int, body: Tensor, workspace: Workspace) -> None:
        for values in unpacked_values(body, codec, count, workspace):
            visit(begin, values)
            begin += values.numel()

    return Decoding(parts, spec, numel, body_buffer, put, buffers)


def slices(
    parts: Iterable[Part], spec: CodecSpec, numel: int, factor: float | None = None, buffers: int = 0
) -> Iterator[Tensor]:
    """The flat vector, times `factor`, STEP elements at a time (a slice's last run may be shorter).

    A run must not be changed, and is valid until the next is drawn. Holds one slice. The values of `buffers` more
    elements follow, which are passed over.

    Raises:
        Rejected: As `payload.decode`, while runs are drawn.
    """
    codec, reader, zstd = codec_for(spec), PartReader(parts), zstandard.ZstdDecompressor()
    with borrowed() as workspace:
        for begin in range(0, numel, SLICE):
            count = min(SLICE, numel - begin)
            body = read_frame(reader, zstd, *codec.bounds(count), workspace)
            yield from unpacked_values(body, codec, count, workspace, factor)
    read_buffers(reader, torch.empty(buffers, dtype=torch.float32, device="cpu"))
