"""The federation that most tests run: its small model, updates to it, and an aggregator."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import torch
from torch import Tensor

from llmos_stream.broker import Broker
from llmos_stream.codec import Layout, encode
from llmos_stream.config import Settings
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import Initial
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.testing import RunningFederation, quick_settings, running_federation
from llmos_stream.testing import updates as testing
from llmos_stream.types import CodecId, CodecSpec, UpdateHead

LAYOUT = Layout.of({"w": torch.zeros(40), "b": torch.zeros(2, 5)})
NUMEL = LAYOUT.numel
FLOAT32 = CodecSpec(CodecId.FLOAT32)

settings_for = quick_settings
records_of = testing.update_records


def initial() -> Initial:
    return Initial(LAYOUT, torch.zeros(NUMEL))


def delta_of(value: float) -> Tensor:
    return torch.full((NUMEL,), value)


def update_head(payload: list[bytes], **changes: Any) -> UpdateHead:
    return testing.update_head(LAYOUT, payload, **changes)


def update(delta: Tensor, chunk_bytes: int = 1 << 16, written: CodecSpec = FLOAT32, **changes: Any) -> list[bytes]:
    """The records of a good update, in the codec `written`, with changes to its head."""
    payload = list(encode(delta, written))
    return records_of(update_head(payload, **{"codec": written, **changes}), payload, chunk_bytes)


async def publish_random(running: RunningFederation, numbers: Iterable[int]) -> None:
    """Let a random update make each of these versions, one after the other."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        delta = torch.randn(running.initial.layout.numel, generator=generator)
        await running.publish(delta, sequence=number, base_version=number - 1)
        await running.version(number)


async def control_of(running: RunningFederation, *, sequences_of: str | None = None) -> ControlView:
    """The control topic as it is now."""
    async with running.federation.control(sequences_of=sequences_of) as control:
        return control


def aggregator(
    broker: Broker, settings: Settings, clock: Clock = SYSTEM_CLOCK
) -> AbstractAsyncContextManager[RunningFederation]:
    """Run an aggregator of this model until the block ends; then stop it in order."""
    return running_federation(initial(), settings, broker, clock=clock)
