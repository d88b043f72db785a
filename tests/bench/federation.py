"""A federation of the package's own processes, with updates made by hand."""

import asyncio
import contextlib
import os
import re
import sys
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout, encode
from llmos_stream.config import Settings, to_environment
from llmos_stream.log import ControlView
from llmos_stream.types import CodecId, CodecSpec, UpdateHead
from llmos_stream.wire import message_id, pack_prelude, payload_digest, split
from tests.bench.children import BenchmarkFailed

_CODEC = CodecSpec(CodecId.FLOAT32)
_POLL_SECONDS = 0.02
_PORT = re.compile(r"predicting on .*:(\d+)")


class Updates:
    """Updates in, versions out: a federation as its clients see it."""

    def __init__(self, broker: Broker, settings: Settings, layout: Layout) -> None:
        self.topics = Topics(settings.federation.name)
        self._producer = broker.producer()
        self._layout = layout
        self._settings = settings
        self._sent = 0

    async def __aenter__(self) -> Self:
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.__aexit__(kind, error, trace)

    async def send(self, base: int, delta: Tensor | None = None) -> None:
        """One update; by default one that moves every parameter by the same little."""
        delta = torch.full((self._layout.numel,), 1e-3) if delta is None else delta
        parts = list(encode(delta, _CODEC))
        head = UpdateHead(
            client_id="bench",
            sequence=self._sent,
            base_version=base,
            num_examples=1,
            layout_digest=self._layout.digest,
            codec=_CODEC,
            payload_size=sum(map(len, parts)),
            payload_digest=payload_digest(parts),
        )
        records = split(
            pack_prelude(head),
            parts,
            payload_size=head.payload_size,
            message_id=message_id("bench", self._sent),
            chunk_bytes=self._settings.wire.chunk_bytes,
        )
        self._sent += 1
        await self._producer.send_all(self.topics.updates, records, key=b"bench")

    async def until(self, control: ControlView, version: int) -> float:
        """When `version` was seen in the log."""
        while control.latest is None or control.latest.version < version:
            await control.poll(_POLL_SECONDS)
        return time.monotonic()


async def start_role(stack: AsyncExitStack, settings: Settings, *command: str) -> asyncio.subprocess.Process:
    """Run a command of `llmos-stream` until the stack is left; its log is a pipe."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmos_stream", *command),
        env=os.environ | to_environment(settings),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    stack.push_async_callback(_end, process)
    return process


async def said(process: asyncio.subprocess.Process, words: str) -> str:
    """Wait until its log says so; returns that line. Raises BenchmarkFailed when it ends before."""
    if process.stderr is None:
        raise ValueError("its log is a pipe")
    lines = b""
    while True:
        line = await process.stderr.readline()
        lines += line
        if words.encode() in line:
            return line.decode()
        if not line:
            raise BenchmarkFailed(f"a process ended:\n{lines.decode(errors='replace')}")


def port_said(line: str) -> int:
    """The port in the line in which the service says where it answers."""
    if (found := _PORT.search(line)) is None:
        raise BenchmarkFailed(f"the service does not say its port: {line}")
    return int(found[1])


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()  # also one that was stopped
    await process.communicate()
