"""The device that folds, and how slices get there from the processor's memory."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from llmos_stream.core.flat import BLOCK, block_views
from llmos_stream.errors import ConfigError


def device_for(name: str) -> torch.device:
    """The device that `aggregator.device` names: cpu, cuda, or auto for a GPU where there is one.

    Raises ConfigError for cuda where there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError(
            "aggregator.device: torch finds no GPU here; say cpu (or auto, for a GPU where there is one), or install "
            "the driver and a build of torch for it"
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


class Upload:
    """Brings slices (1-D float32 on the CPU) to `device`, where each is valid until the next is asked for.

    On the CPU a slice is there already. For a GPU it is copied into one of two stretches of pinned memory, from which
    the GPU fetches it while the next one is being decoded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stages: list[_Stage] = []

    def blocks(self, slices: Iterable[Tensor]) -> Iterator[Tensor]:
        """`slices`, cut into blocks where they are longer, each on the device."""
        for part in slices:
            yield from map(self._bring, block_views(part))

    def _bring(self, values: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return values
        if len(self._stages) < 2:
            self._stages.append(_Stage(self._device))
        self._stages.append(stage := self._stages.pop(0))
        return stage.send(values)


class _Stage:
    """Pinned memory for one slice, its counterpart on the GPU, and the moment from which they may be used again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = torch.empty(0, dtype=torch.float32, device="cpu")
        self._there = torch.empty(0, dtype=torch.float32, device=device)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, values: Tensor) -> Tensor:
        count = values.numel()
        self._copied.synchronize()
        if self._pinned.numel() < count:
            self._pinned = torch.empty(BLOCK, dtype=torch.float32, device="cpu", pin_memory=True)
            self._there = torch.empty(BLOCK, dtype=torch.float32, device=self._device)
        self._pinned[:count].copy_(values)
        # In the stream's order this comes after what was made of the values that lay there before.
        there = self._there[:count].copy_(self._pinned[:count], non_blocking=True)
        self._copied.record()
        return there
