"""Texts of a language model over HTTP while versions are swapped in, beside plain `generate` of transformers.

As with predictions, the package's own processes run on a real Kafka and an update goes to the log each time a share of
the requests has been answered. OpenAI's client streams chats. Every answer is compared with what `generate` makes of
the version that it names: one whose tokens are of two versions would be found out.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from statistics import median
from typing import Any, NamedTuple

import openai
import torch
from torch import Tensor

from llmos_stream.broker import Broker, Topics, connect
from llmos_stream.config import Settings
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.training import load_task
from llmos_stream.training.llm.prompts import Prompts
from llmos_stream.training.llm.versions import VersionedModel
from tests.bench.children import BenchmarkFailed
from tests.bench.common import show, write_json
from tests.bench.federation import Updates, port_said, said, start_role
from tests.bench.load import Load, Measured
from tests.bench.pipe_rows import percentile
from tests.federation import decoded_versions

_ASKED = (
    "What is a law?",
    "Name three rivers, and say where each of them ends.",
    "Write a line about peace.",
    "How many days has a year? Say why it is not always the same number, in a sentence.",
)
_NOISE = 2.0  # so that each version says something else
_CLIENT_SECONDS = 600.0


class Answer(NamedTuple):
    """Seconds are those of the wall clock; `version` is None where there was an error."""

    prompt: int
    begun: float
    first: float
    version: int | None
    text: str
    tokens: int


class Expected(NamedTuple):
    """What a version says to each prompt, and when it was made."""

    made: float
    texts: Sequence[str]


class Row(NamedTuple):
    """One phase. `mixed` are answers that the version they name does not give."""

    phase: str
    answers: int
    dropped: int
    mixed: int
    versions: int
    tokens_per_second: float
    generate_per_second: float
    ratio: float
    first_p50_ms: float


class Found(NamedTuple):
    rows: list[Row]
    swap_ms: list[float]
    """From the making of each version to its first token, under load."""
    idle_ms: list[float]
    """The same where nobody else asks."""


def settings_of(options: argparse.Namespace, model: str) -> dict[str, dict[str, Any]]:
    """What the settings of predictions do not have."""
    task = {"entry": "llm", "options": {"model": model, "sequence": 64}}
    return {"task": task, "inference": {"port": 0, "max_batch": options.connections}}


def report(found: Found, options: argparse.Namespace) -> None:
    """Print the table, write the file, and fail where an answer was dropped or mixed."""
    show(
        f"Chats of {options.tokens} tokens, streamed over HTTP, on {options.threads} thread(s)",
        ["", "answers", "dropped", "mixed", "versions", "tokens/s", "generate's", "ratio", "first token p50 ms"],
        [
            [row.phase, *map(str, row[1:5]), *(f"{rate:.1f}" for rate in row[5:7]), f"{row[7]:.2f}", f"{row[8]:.0f}"]
            for row in found.rows
        ],
        f"A new version's first token came {_median(found.swap_ms)} after the aggregator made it under this load, "
        f"{_median(found.idle_ms)} without; generate's: tokens/s of transformers, as many prompts in a batch as ask at "
        "a time",
    )
    ours = {"swap_ms": found.swap_ms, "idle_ms": found.idle_ms, "results": [row._asdict() for row in found.rows]}
    write_json(options.output, "serve-llm", ours)
    if any(row.dropped or row.mixed for row in found.rows):
        raise BenchmarkFailed("answers were dropped or mixed: see the table")


def _median(milliseconds: Sequence[float]) -> str:
    if not milliseconds:
        return "too late"  # the last request had begun before
    return f"{median(milliseconds):.0f} ms (at most {max(milliseconds):.0f})"


async def measure(options: argparse.Namespace, settings: Settings) -> Found:
    """Measure all phases."""
    topics, name = Topics(settings.federation.name), settings.federation.name
    task = load_task(settings.task, settings.client)
    layout = initial_of(task, settings).layout
    async with asyncio.timeout(options.limit), connect(settings.broker) as broker:
        async with AsyncExitStack() as stack:
            await broker.create_topics(topics.specs(settings.topics))
            stack.push_async_callback(broker.delete_topics, topics.names)
            await start_role(stack, settings, "aggregator", "--quiet")
            control = ControlView(await stack.enter_async_context(broker.reader([topics.control], start="earliest")))
            updates = await stack.enter_async_context(Updates(broker, settings, layout))
            await updates.until(control, 0)
            service = await start_role(stack, settings, "serve")
            port = port_said(await said(service, "predicting on"))
            await said(service, "version 0 is ready")
            numbers = count(1)

            async def publish(_: int = 0) -> int:
                number = next(numbers)
                noise = torch.randn(layout.numel, generator=torch.Generator().manual_seed(number)) * _NOISE
                await updates.send(number - 1, noise)
                await updates.until(control, number)
                return number

            def load(connections: int) -> Load[Answer]:
                return Load(lambda: _asking(port, name, options.tokens), connections)

            await load(1).run(1)
            alone = await load(1).run(options.alone)
            still = await load(options.connections).run(max(options.requests // 10, options.connections))
            moving = await load(options.connections).run(options.requests, options.versions, publish)
            idle = [answer async for answer in _idle(port, name, publish)]
            model = VersionedModel(settings.task, task.model)
            expected = await _expected(broker, settings, model, options.tokens)
        one, many = (_generate_rate(model, size, options.tokens) for size in (1, options.connections))
    rows = [
        _row("one at a time", alone, expected, one),
        _row(f"{options.connections} at a time", still, expected, many),
        _row(f"{options.versions} swapped in", moving, expected, many),
    ]
    return Found(rows, _swap_ms(moving.answers, expected, skip=0), _swap_ms(idle, expected))


@contextlib.asynccontextmanager
async def _asking(port: int, name: str, tokens: int) -> AsyncIterator[Callable[[int], Awaitable[Answer]]]:
    url = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=_CLIENT_SECONDS, max_retries=0) as client:

        async def ask(turn: int) -> Answer:
            prompt, begun, first, text = turn % len(_ASKED), time.time(), 0.0, ""
            messages: Any = [{"role": "user", "content": _ASKED[prompt]}]
            asked: dict[str, Any] = {"model": name, "messages": messages, "max_tokens": tokens, "temperature": 0}
            try:
                stream = await client.chat.completions.create(
                    **asked, stream=True, stream_options={"include_usage": True}
                )
                async for chunk in stream:
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                    first = first or (time.time() if text else 0.0)
                made = chunk.usage.completion_tokens
                return Answer(prompt, begun, first or time.time(), int(chunk.model.rpartition(":")[2]), text, made)
            except openai.APIError:
                return Answer(prompt, begun, time.time(), None, text, 0)

        yield ask


async def _idle(port: int, name: str, publish: Callable[[], Awaitable[int]], times: int = 3) -> AsyncIterator[Answer]:
    """The first answer of each of some further versions, asked for again and again by one client."""
    async with _asking(port, name, 1) as ask:
        for _ in range(times):
            number = await publish()
            while (answer := await ask(0)).version != number:
                if answer.version is None:
                    raise BenchmarkFailed("the service gave an error")
            yield answer


async def _expected(broker: Broker, settings: Settings, model: VersionedModel, tokens: int) -> dict[int, Expected]:
    """What `generate` makes of each version in the log."""
    found: dict[int, Expected] = {}
    async with broker.reader([Topics(settings.federation.name).models], start="earliest") as reader:
        async for version in decoded_versions(reader, settings.wire):
            model.load(version.layout, version.weights)
            texts = [_said(model, _generate(model, [prompt], tokens)[0]) for prompt in _prompts(model)]
            found[version.head.number] = Expected(version.head.time_ms / 1000, texts)
    if len({tuple(expected.texts) for expected in found.values()}) < len(found):
        raise BenchmarkFailed("versions say the same, so that none of them can be told from another")
    return found


def _prompts(model: VersionedModel) -> list[list[int]]:
    prompts = Prompts(model.tokenizer)
    return [prompts.of_chat([{"role": "user", "content": asked}]) for asked in _ASKED]


def _generate(model: VersionedModel, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """What transformers itself makes of prompts, in one batch that is padded at the left."""
    longest, end = max(map(len, prompts)), model.tokenizer.eos_token_id
    ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        made: Tensor = model.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=end
        )
    rows = made[:, longest:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def _said(model: VersionedModel, tokens: list[int]) -> str:
    return Prompts(model.tokenizer).said(tokens)


def _generate_rate(model: VersionedModel, batch: int, tokens: int) -> float:
    """Tokens/s, the best of three."""
    asked = _prompts(model)
    rates = []
    for begin in range(3):
        prompts = [asked[(begin + place) % len(asked)] for place in range(batch)]
        begun = time.perf_counter()
        made = sum(map(len, _generate(model, prompts, tokens)))
        rates.append(made / (time.perf_counter() - begun))
    return max(rates)


def _row(phase: str, measured: Measured[Answer], expected: dict[int, Expected], generate: float) -> Row:
    good = [answer for answer in measured.answers if answer.version is not None]
    rate = sum(answer.tokens for answer in good) / measured.seconds
    return Row(
        phase,
        len(measured.answers),
        len(measured.answers) - len(good),
        sum(not _is_of(answer, expected) for answer in good),
        len({answer.version for answer in good}),
        rate,
        generate,
        rate / generate,
        percentile([1e3 * (answer.first - answer.begun) for answer in good], 0.5),
    )


def _is_of(answer: Answer, expected: dict[int, Expected]) -> bool:
    known = expected.get(-1 if answer.version is None else answer.version)
    return known is not None and answer.text == known.texts[answer.prompt]


def _swap_ms(answers: Sequence[Answer], expected: dict[int, Expected], skip: int | None = None) -> list[float]:
    """From the making of each version to the first token that any of its answers has."""
    firsts: dict[int, float] = {}
    for answer in answers:
        if answer.version is not None and answer.version != skip:
            firsts[answer.version] = min(answer.first, firsts.get(answer.version, answer.first))
    return [1e3 * (first - expected[version].made) for version, first in firsts.items()]
