"""From a training's result to the update that the aggregator is given, with the bytes that it takes on its way."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from llmos_stream.codec import Layout, UpdateEncoding, decode, has_residual, max_payload_size, spec_of
from llmos_stream.core import Update, Whole
from llmos_stream.core.delta import Delta
from llmos_stream.errors import ConfigError
from llmos_stream.simulation.job import Job
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.types import UpdateHead

_SAMPLED_EVERY = 512
_MOST_RESIDUALS = 2 << 30
_NO_DIGEST = bytes(32)


class Sending:
    """Makes the updates of one run. `coded` ones go through the codec, with what earlier ones left out.

    Others are folded as they were trained; what they weigh is told by one of so many that is encoded, and thrown away.

    Raises:
        ConfigError: The residuals of all clients would not fit into memory.
    """

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self._settings = settings.codec
        self._layout = layout
        self.coded = settings.simulation.coded
        self.spec = spec_of(settings.codec)
        self._encodings: dict[int, UpdateEncoding] = {}
        self._size = max_payload_size(self.spec, layout.parameters, layout.buffer_elements)
        self._sent = 0
        size = 4 * layout.parameters * settings.population.clients
        if self.coded and has_residual(settings.codec) and size > _MOST_RESIDUALS:
            raise ConfigError(
                f"simulation.coded: what updates leave out takes {size / 1e9:.0f} GB for {settings.population.clients} "
                "clients; say codec.error_feedback = false, or fewer clients"
            )

    def size(self) -> int:
        """Bytes of an update that is not encoded."""
        return self._size

    def encoded(self, job: Job, client_id: str, sequence: int) -> Sequence[bytes]:
        """The payload of a job's update. Raises ValueError where it is not finite."""
        if job.client not in self._encodings:
            self._encodings[job.client] = UpdateEncoding(self._settings, client_id, self._layout.parameters)
        encoding = self._encodings[job.client]
        frames = list(encoding.frames(_flat(job.delta), self._buffers(job), sequence))
        if encoding.feedback is not None:
            encoding.feedback.commit()
        return frames

    def update(self, job: Job, client_id: str, sequence: int, place: int, payload: Sequence[bytes] | None) -> Update:
        """The update that the aggregator is given, which lies at this place of the log."""
        if job.delta is None:
            raise ValueError("the job was not trained")
        delta: Tensor | Delta = job.delta
        buffers = job.buffers
        size, digest = self._size, _NO_DIGEST
        if payload is not None:
            buffers = torch.empty(self._layout.buffer_elements, dtype=torch.float32, device="cpu")
            delta = Whole(decode(payload, self.spec, self._layout.parameters, buffers=buffers), owned=True)
            size, digest = sum(map(len, payload)), hashlib.sha256(b"".join(payload)).digest()
        elif self._sent % _SAMPLED_EVERY == 0:
            size = self._size = self._sampled(job)
        self._sent += 1
        head = UpdateHead(
            client_id,
            sequence,
            job.version,
            job.num_examples,
            self._layout.digest,
            self.spec,
            size,
            digest,
            job.metrics,
        )
        return Update(head, 0, place, delta, buffers)

    def _sampled(self, job: Job) -> int:
        encoding = UpdateEncoding(self._settings, "sample", self._layout.parameters)
        try:
            return sum(map(len, encoding.frames(_flat(job.delta).clone(), self._buffers(job), 0)))
        except ValueError:  # not finite: the aggregator refuses it
            return self._size

    def _buffers(self, job: Job) -> Tensor:
        return torch.empty(0, dtype=torch.float32, device="cpu") if job.buffers is None else job.buffers


def _flat(delta: Tensor | Delta | None) -> Tensor:
    if isinstance(delta, Tensor):
        return delta
    if delta is None:
        raise ValueError("the job was not trained")
    return torch.cat([part.clone() for part in delta.slices()])
