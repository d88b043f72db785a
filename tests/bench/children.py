"""Processes of a benchmark. A child answers each JSON line on its standard input with one on its standard output.

It ends when its standard input does, so none outlives the process that started it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from llmos_stream.runtime import run_all, run_while

_LINE_BYTES = 1 << 24
_GRACE_SECONDS = 20.0
_TAIL_BYTES = 2000


class BenchmarkFailed(Exception):
    """The measurement cannot go on or does not count; the message says why."""


class NotHere(BenchmarkFailed):
    """This machine cannot run the benchmark; the message says what is missing."""


class Child:
    """The parent's side. One command at a time."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, output: Path) -> None:
        self.name = name
        self._process = process
        self._output = output

    @classmethod
    async def start(
        cls, name: str, module: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Run `python -m module` with `environment` beside this process's own; its log goes to `folder`."""
        output = folder / f"{name}.log"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                env={**os.environ, **(environment or {})},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                limit=_LINE_BYTES,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
            )
        return cls(name, process, output)

    async def ask(self, do: str, **more: object) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("a child has pipes")
        with contextlib.suppress(ConnectionError):  # a child that has failed says why in its log
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            await self.watch()
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def watch(self) -> NoReturn:
        """Raise BenchmarkFailed, with the end of its log, when the child ends."""
        code = await self._process.wait()
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - _TAIL_BYTES))
            tail = file.read().decode(errors="replace").strip()
        why = " (killed from outside: did memory run out?)" if code == -signal.SIGKILL else ""
        raise BenchmarkFailed(f"{self.name} ended with status {code}{why}:\n{tail}")

    async def end(self) -> None:
        """Close its standard input and wait; kill it when that takes too long."""
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._process.communicate(b"")
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.communicate(b"")


async def end_all(children: Sequence[Child]) -> None:
    await run_all(*(child.end() for child in children))


async def serve(answer: Callable[[dict[str, Any]], Awaitable[Mapping[str, object]]]) -> None:
    """The child's side: answer commands until standard input ends. What is under way then is cancelled."""
    lines = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    waiting: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        async for line in lines:
            waiting.put_nowait(line)

    async def work() -> None:
        while True:
            print(json.dumps(await answer(json.loads(await waiting.get()))), flush=True)

    try:
        await run_while(read(), work())
    finally:
        transport.close()
