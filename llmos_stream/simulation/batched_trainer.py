"""Many clients' trainings in one: their models are stacked, and each step is made by all of them at once.

Those on different versions go together, too. The result is that of one after the other, up to the rounding of sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.core import Whole
from llmos_stream.core.flat import ROW, norm_of
from llmos_stream.simulation.data import Integers, SplitData
from llmos_stream.simulation.job import Job
from llmos_stream.simulation.stacked import Parameters, Stacked
from llmos_stream.types import LOCAL_STEPS


@dataclass(frozen=True, slots=True)
class PlainSgd:
    """SGD as every client does it: `m <- momentum m + g + weight_decay w; w <- w - lr m`."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether a step is the gradient's alone."""
        return not self.momentum and not self.weight_decay


class TrainedDelta(Whole):
    """A row of a stack of deltas, with the norms of its own rows (see `core.flat.row_norms`)."""

    def __init__(self, flat: Tensor, rows: Sequence[float]) -> None:
        super().__init__(flat, owned=True)
        self._norm = norm_of(rows, lambda: [flat])

    def norm(self) -> float:
        return self._norm

    def bound(self) -> float:
        return self._norm


def trained_deltas(stack: Tensor) -> list[TrainedDelta]:
    """The deltas of a stack, [copies, elements], each with the norm that it would have alone."""
    whole = stack.shape[1] // ROW * ROW
    norms = torch.linalg.vector_norm(stack[:, :whole].view(len(stack), whole // ROW, ROW), dim=2)
    if whole < stack.shape[1]:
        norms = torch.cat([norms, torch.linalg.vector_norm(stack[:, whole:], dim=1, keepdim=True)], dim=1)
    return [TrainedDelta(flat, rows) for flat, rows in zip(stack.unbind(), norms.tolist(), strict=True)]


class BatchedTrainer:
    """See `Trainer`. All parameters are shared, float32 and trained; there are no buffers."""

    batches = True

    def __init__(
        self,
        stacked: Stacked,
        data: SplitData,
        layout: Layout,
        weights: Tensor,
        sgd: PlainSgd,
        device: torch.device,
        how: str,
    ) -> None:
        self.how = how
        self._stacked = stacked
        self._data = data
        self._layout = layout
        self._weights = weights
        self._sgd = sgd
        self._device = device
        self._inputs, self._labels = data.inputs.to(device), data.labels.to(device)

    def begin(self) -> tuple[Layout, Tensor]:
        return self._layout, self._weights

    def size(self, job: Job) -> tuple[int, float]:
        return self._data.seen(job.client, job.number), 1.0

    def timed(self, job: Job, seconds: float) -> None:
        pass  # nothing adapts to it

    def own(self, client: int) -> Mapping[str, Tensor]:
        return {}

    def train(self, jobs: Sequence[Job]) -> None:
        # Those with most steps first: whoever is done leaves at the end.
        ordered = sorted(jobs, key=lambda job: -self._data.steps_of(job.client))
        plan = self._data.steps([job.client for job in ordered], [job.number for job in ordered])
        bases = torch.stack([job.base for job in ordered])
        trained = bases.to(self._device, copy=True)  # the parameters are views of it, so that nothing is put together
        pieces = torch.split(trained, [spec.numel for spec in self._layout.tensors], dim=1)
        parameters = {
            spec.name: piece.view(len(ordered), *spec.shape)
            for spec, piece in zip(self._layout.tensors, pieces, strict=True)
        }
        moments: dict[str, Tensor] = {}
        for step, (inputs, targets, weights) in enumerate(self._steps(plan.examples, plan.sizes)):
            there = len(inputs)
            live = {name: tensor[:there] for name, tensor in parameters.items()}
            with torch.no_grad():
                if self._sgd.is_plain:
                    self._stacked.descend(live, inputs, targets, weights, self._sgd.lr)
                    continue
                self._move(live, self._stacked.gradients(live, inputs, targets, weights), moments, is_first=step == 0)
        deltas = trained.cpu().sub_(bases)
        for job, delta in zip(ordered, trained_deltas(deltas), strict=True):
            job.delta = delta
            job.metrics = {LOCAL_STEPS: float(self._data.steps_of(job.client))}
            job.num_examples = self._data.counted(job.client, job.number)

    def _steps(self, examples: Integers, sizes: Integers) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs, targets and the parts of the examples in the mean, of those who take a step, step by step."""
        there = (sizes > 0).sum(axis=0).tolist()
        widths = sizes.max(axis=0).tolist()
        counted = np.arange(examples.shape[2]) < sizes[:, :, None]
        shares = np.where(counted, 1.0 / np.maximum(sizes, 1)[:, :, None], 0.0).astype(np.float32)
        parts, chosen = torch.from_numpy(shares).to(self._device), torch.from_numpy(examples).to(self._device)
        for step, (copies, width) in enumerate(zip(there, widths, strict=True)):
            which = chosen[:copies, step, :width]
            yield self._inputs[which], self._labels[which], parts[:copies, step, :width]

    def _move(self, live: Parameters, gradients: Parameters, moments: dict[str, Tensor], *, is_first: bool) -> None:
        sgd = self._sgd
        for name, tensor in live.items():
            gradient = gradients[name]
            if sgd.weight_decay:
                gradient = gradient.add(tensor, alpha=sgd.weight_decay)
            if sgd.momentum:
                if is_first:
                    moments[name] = gradient
                else:
                    gradient = moments[name][: len(tensor)].mul_(sgd.momentum).add_(gradient)
            tensor.add_(gradient, alpha=-sgd.lr)
