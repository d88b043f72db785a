"""A language model, asked by OpenAI's own client: answers, streams, swaps, refusals."""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.generation.generator import Ask, Busy, Generator
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.generation.sampling import Sampling
from llmos_stream.runtime import Offload
from llmos_stream.testing import until
from llmos_stream.training.llm.decoding import Decoder
from tests.inference.aids import SECONDS
from tests.inference.generation.aids import NAME, Versions, generating, greedy

_PROMPT = "the state of the union"
_MESSAGES: Any = [{"role": "user", "content": "peace?"}]


@pytest.fixture(scope="module")
def versions(tiny: Path) -> Versions:
    return Versions(tiny)


async def test_a_completion_is_what_the_model_itself_makes_and_names_its_version(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [greedy(versions, version, _PROMPT, 12) for version in (1, 2)]
    assert expected[0] != expected[1]
    async with generating(versions, caplog) as here:
        here.pool.publish(versions.loaded(1))
        here.pool.publish(versions.loaded(2))
        for model, version in ((NAME, 2), (f"{NAME}:1", 1)):
            answer = await here.client.completions.with_raw_response.create(
                model=model, prompt=_PROMPT, max_tokens=12, temperature=0
            )
            said = answer.parse()
            assert said.choices[0].text == expected[version - 1]
            assert said.model == f"{NAME}:{version}"
            assert said.system_fingerprint == f"{version}-{'0' * 12}"
            assert answer.headers["x-llmos-version"] == str(version)
            assert said.usage is not None
            prompt = len(versions.model.tokenizer(_PROMPT).input_ids)
            assert said.usage.prompt_tokens == prompt
            assert said.usage.total_tokens == prompt + said.usage.completion_tokens


async def test_a_chat_goes_through_the_models_template_and_streams_what_it_would_say_as_a_whole(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    async with generating(versions, caplog) as here:
        here.pool.publish(versions.loaded(1))
        asked: dict[str, Any] = {"model": NAME, "messages": _MESSAGES, "max_tokens": 16, "temperature": 0}
        whole = await here.client.chat.completions.create(**asked)
        written = versions.model.tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
        stream = await here.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].message.content == greedy(versions, 1, written, 16)
    told = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert told[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {f"{NAME}:1"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_together_they_answer_as_each_alone(versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
    """Prompts of many lengths share a pass, padded on the left."""
    prompts = [" ".join(_PROMPT.split()[: 1 + place % 5] * (1 + place % 3)) for place in range(12)]
    expected = [greedy(versions, 1 + place % 2, prompt, 8 + place % 7) for place, prompt in enumerate(prompts)]
    async with generating(versions, caplog, max_batch=8) as here:
        here.pool.publish(versions.loaded(1))
        here.pool.publish(versions.loaded(2))

        async def ask(place: int) -> str:
            answer = await here.client.completions.create(
                model=f"{NAME}:{1 + place % 2}", prompt=prompts[place], max_tokens=8 + place % 7, temperature=0
            )
            return answer.choices[0].text

        assert await asyncio.gather(*map(ask, range(12))) == expected
        steps = here.registry.get_sample_value("llmos_inference_batch_examples_count")
        made = here.registry.get_sample_value("llmos_generation_tokens_total", {"kind": "answer"})
        assert steps is not None
        assert made is not None
        assert steps < made  # so that some did share one
        assert here.registry.get_sample_value("llmos_generation_first_token_seconds_count") == 12


async def test_who_waits_joins_in_one_pass_and_a_prompt_that_fails_fails_alone(
    versions: Versions, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, passes = threading.Event(), list[list[int]]()
    really = Decoder.join

    def join(self: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
        assert gate.wait(SECONDS)
        passes.append([len(prompt) for prompt in prompts])
        if any(len(prompt) == 7 for prompt in prompts):
            raise RuntimeError("an odd prompt")
        return really(self, prompts)

    monkeypatch.setattr(Decoder, "join", join)
    monkeypatch.setattr("llmos_stream.inference.generation.generator._PASS_TOKENS", 15)
    async with generating(versions, caplog, max_batch=8) as here:
        here.pool.publish(versions.loaded(1))

        def ask(length: int) -> asyncio.Task[Any]:
            asked: dict[str, Any] = {"prompt": [5] * length, "max_tokens": 2, "temperature": 0}
            return asyncio.create_task(here.client.completions.create(model=NAME, **asked))

        first = ask(1)
        await until(lambda: here.generator.running + len(here.generator._groups) > 0)
        others = [ask(length) for length in (2, 3, 20, 2)]
        await until(lambda: here.generator.waiting == 4)
        gate.set()
        together = [(await answer).choices[0].text for answer in (first, *others)]
        assert passes == [[1], [2, 3], [20], [2]], "a long prompt is a pass by itself"
        alone = [(await ask(length)).choices[0].text for length in (1, 2, 3, 20, 2)]
        assert together == alone
        gate.clear()
        last = [ask(1)]
        await until(lambda: here.generator.running + len(here.generator._groups) > 0)
        last += [ask(7), ask(3)]
        await until(lambda: here.generator.waiting == 2)
        gate.set()
        assert (await last[2]).choices[0].text == alone[2]
        with pytest.raises(openai.InternalServerError, match="version 1 failed"):
            await last[1]
        await last[0]


async def test_who_is_taken_in_while_it_stops_is_told(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()
    really = Decoder.join

    def join(self: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
        begun.set()
        assert gate.wait(SECONDS)
        return really(self, prompts)

    monkeypatch.setattr(Decoder, "join", join)
    async with Offload(1) as offload:
        metrics = GenerationMetrics(CollectorRegistry())
        generator = Generator(InferenceSettings(), versions.model, offload, metrics)
        asked = Ask((1, 2), 2, Sampling(0.0, 1.0, None, None))
        model = versions.loaded(1)
        replies = [generator.ask(model, asked) for _ in range(3)]
        working = asyncio.create_task(generator.run())
        await until(begun.is_set)
        working.cancel()
        gate.set()
        await asyncio.wait([working])
        for reply in replies:
            with pytest.raises(Busy, match="stopping"):
                async with asyncio.timeout(SECONDS):
                    _ = [piece async for piece in reply.pieces()]


@pytest.mark.full
async def test_a_thousand_streams_meet_ten_versions_and_none_is_dropped_or_of_two(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    requests, count, tokens = 1000, 10, 4
    expected = {f"{NAME}:{version}": greedy(versions, version, _PROMPT, tokens) for version in range(1, count + 1)}
    assert len(set(expected.values())) == count
    turns, answers = itertools.count(), list[tuple[str, str]]()
    asked = {"model": NAME, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
    comes = {requests * (version - 1) // count: version for version in range(2, count + 1)}
    async with generating(versions, caplog, max_batch=8, keep=1) as here:
        here.pool.publish(versions.loaded(1))

        async def ask() -> None:
            while next(turns) < requests:
                async with here.http.stream("POST", "/v1/completions", json=asked) as stream:
                    lines = [line async for line in stream.aiter_lines() if line]
                assert lines.pop() == "data: [DONE]"
                chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines]
                (model,) = {chunk["model"] for chunk in chunks}
                assert chunks[-1]["choices"][0]["finish_reason"] is not None
                answers.append((model, "".join(chunk["choices"][0]["text"] for chunk in chunks)))
                if (version := comes.get(len(answers))) is not None:
                    here.pool.publish(versions.loaded(version))

        await asyncio.gather(*(ask() for _ in range(12)))
    assert len(answers) == requests
    assert all(text == expected[model] for model, text in answers)
    assert {model for model, _ in answers} == set(expected)


async def test_the_same_seed_gives_the_same_answer(versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
    async with generating(versions, caplog) as here:
        here.pool.publish(versions.loaded(1))

        async def ask(seed: int, **more: Any) -> str:
            answer = await here.client.completions.create(model=NAME, prompt=_PROMPT, max_tokens=12, seed=seed, **more)
            return str(answer.choices[0].text)

        assert await ask(1) == await ask(1)
        assert len({await ask(seed) for seed in range(5)}) > 1
        likeliest = greedy(versions, 1, _PROMPT, 12)
        assert await ask(1, top_p=0.0) == likeliest
        assert await ask(2, top_p=1e-6) == likeliest


async def test_an_answer_ends_before_a_stop_and_tells_logarithms_of_probabilities(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    said = greedy(versions, 1, _PROMPT, 16)
    stop = said[len(said) // 2 : len(said) // 2 + 3]
    async with generating(versions, caplog) as here:
        here.pool.publish(versions.loaded(1))
        asked: dict[str, Any] = {"model": NAME, "prompt": _PROMPT, "max_tokens": 16, "temperature": 0}
        answer = await here.client.completions.create(**asked, stop=[stop, "never said"])
        assert answer.choices[0].text == said[: said.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        stream = await here.client.completions.create(**asked, stop=stop, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == said[: said.index(stop)]
        answer = await here.client.completions.create(**asked, logprobs=3)
        logs = answer.choices[0].logprobs
        assert logs is not None
        assert logs.token_logprobs is not None
        assert logs.top_logprobs is not None
        assert [max(top.values()) for top in logs.top_logprobs] == logs.token_logprobs
        assert all(log is not None and log <= 0 for log in logs.token_logprobs)
        chat = await here.client.chat.completions.create(
            model=NAME, messages=_MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
        )
        content = chat.choices[0].logprobs
        assert content is not None
        assert content.content is not None
        assert all(one.top_logprobs[0].logprob == one.logprob for one in content.content)


async def test_models_are_listed_and_the_route_is_followed(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    async with generating(versions, caplog, token="let-me", keep=5) as here:  # noqa: S106
        with pytest.raises(openai.InternalServerError, match="there is no version yet"):
            await here.client.completions.create(model=NAME, prompt=_PROMPT)
        for version in (1, 2, 3):
            here.pool.publish(versions.loaded(version))
        listed = [model.id async for model in here.client.models.list()]
        assert listed == [NAME, f"{NAME}:3", f"{NAME}:2", f"{NAME}:1"]
        assert (await here.client.models.retrieve(f"{NAME}:2")).created == 2

        async def answering() -> tuple[str, str]:
            answer = await here.client.completions.with_raw_response.create(model=NAME, prompt=_PROMPT, max_tokens=1)
            return answer.parse().model, answer.headers["x-llmos-why"]

        operator = {"Authorization": "Bearer let-me"}
        assert await answering() == (f"{NAME}:3", "newest")
        here.pool.promote(2)
        assert await answering() == (f"{NAME}:2", "promoted")
        assert (await here.http.put("/v1/route", json={"pin": 1}, headers=operator)).status_code == 200
        assert await answering() == (f"{NAME}:1", "pinned")
        assert (await here.http.put("/v1/route", json={"canary": 1.0}, headers=operator)).status_code == 200
        assert await answering() == (f"{NAME}:3", "canary")
        assert (await here.http.post("/v1/rollback", headers=operator)).json()["pin"] == 1
        assert await answering() == (f"{NAME}:1", "pinned")
        denied = await here.http.put("/v1/route", json={"pin": 9})
        assert (denied.status_code, denied.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "status", "said", "param"),
    [
        ({"model": "gpt-4"}, 404, "there is no such model: ask for laws", "model"),
        ({"model": "laws:9"}, 404, "version 9 is not held; held are: 1", "model"),
        ({"model": f"laws:{'9' * 40}"}, 404, "there is no such model", "model"),
        ({"model": "laws:-1"}, 404, "there is no such model", "model"),
        ({"model": "laws:\N{ARABIC-INDIC DIGIT ONE}"}, 404, "there is no such model", "model"),
        ({"model": None}, 400, "model: Input should be a valid string", "model"),
        ({"tools": []}, 400, "tools is not supported here", "tools"),
        ({"n": 2}, 400, "n: Input should be 1", "n"),
        ({"temperature": 3}, 400, "temperature: Input should be less than", "temperature"),
        ({"temperature": "NaN"}, 400, "temperature: Input should be a finite number", "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater", "max_tokens"),
        ({"max_tokens": 10**30}, 400, "max_tokens: at most 64 here", "max_tokens"),
        ({"seed": 1 << 70}, 400, "seed: Input should be", "seed"),
        ({"stop": [""]}, 400, "stop.0: String should have at least 1", "stop"),
        ({"stop": ["a"] * 5}, 400, "stop: List should have at most 4", "stop"),
        ({"messages": []}, 400, "messages: List should have at least 1", "messages"),
        ({"messages": [{}] * 3000}, 400, "messages.0.role: Field required", "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content", "messages"),
        ({"messages": [{"role": "user", "content": "peace " * 200}]}, 400, "the model's context has 128", "messages"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias", "logit_bias"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "presence_penalty"),
    ],
)
async def test_what_is_no_request_is_refused_in_the_form_that_clients_read(
    versions: Versions,
    caplog: pytest.LogCaptureFixture,
    body: dict[str, Any],
    status: int,
    said: str,
    param: str,
) -> None:
    async with generating(versions, caplog, max_tokens=64) as here:
        here.pool.publish(versions.loaded(1))
        asked = {"model": NAME, "messages": _MESSAGES, "max_tokens": 1, **body}
        answer = await here.http.post("/v1/chat/completions", json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
        assert said in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 5000,
        b"\xff",
        b"null",
        b'{"model": "laws", "prompt": ["a", "b"]}',
        b'{"model": "laws", "prompt": [1, "a"]}',
        b'{"model": "laws", "prompt": [-1]}',
        b'{"model": "laws", "prompt": [384000]}',
        b'{"model": "laws", "prompt": []}',
        b'{"model": "laws", "prompt": {}}',
        b'{"model": "laws", "prompt": "\\ud800"}',
        b"{" + b",".join(b'"%d":0' % place for place in range(5000)) + b"}",
    ],
)
async def test_hostile_bodies_are_bad_requests(
    versions: Versions, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    async with generating(versions, caplog) as here:
        here.pool.publish(versions.loaded(1))
        answer = await here.http.post("/v1/completions", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert len(answer.content) < 1000


async def test_a_body_that_is_too_large_and_a_foreign_name_are_refused_in_the_same_form(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    async with generating(versions, caplog) as here:
        transport = httpx.ASGITransport(here.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as inside:
            large = await inside.post("/v1/completions", content=b" " * (1 << 20))
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        foreign = await here.http.get("/v1/models", headers={"Host": "evil.example"})
        assert foreign.status_code == 421
        assert "inference.allowed_hosts" in foreign.json()["error"]["message"]
        nowhere = await here.http.get("/v1/nothing")
        assert (nowhere.status_code, nowhere.json()["error"]["message"]) == (404, "Not Found")


async def test_who_leaves_in_the_midst_takes_no_further_place(
    versions: Versions, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    step = Decoder.step

    def wait(self: Decoder, tokens: Sequence[int]) -> Tensor:
        assert gate.wait(SECONDS)
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", wait)
    async with generating(versions, caplog, max_batch=1) as here:
        here.pool.publish(versions.loaded(1))
        asked: dict[str, Any] = {"model": NAME, "prompt": "a", "temperature": 0, "max_tokens": 100}

        async def leaving(leave: Callable[[], Awaitable[object]]) -> None:
            await until(lambda: here.generator.running == 1)
            ((reply,),) = (group.rows for group in here.generator._groups.values())
            await leave()
            await until(lambda: reply.left)
            gate.set()
            await until(lambda: here.generator.running == 0)
            assert reply.tokens <= 2
            gate.clear()

        stream = await here.client.completions.create(**asked, stream=True)
        await leaving(stream.close)
        whole = asyncio.create_task(here.client.completions.create(**asked))

        async def cancel() -> None:
            whole.cancel()
            await asyncio.wait([whole])

        await leaving(cancel)
        gate.set()
        answer = await here.client.completions.create(**{**asked, "max_tokens": 2})
        assert answer.usage is not None
        for status, count in (("499", 2), ("200", 1)):
            labels = {"status": status}
            answered = partial(here.registry.get_sample_value, "llmos_inference_answers_total", labels)
            await until(lambda answered=answered, count=count: answered() == count)  # type: ignore[misc]


async def test_beyond_the_limit_of_the_queue_one_is_asked_to_come_again(
    versions: Versions, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    step = Decoder.join

    def join(self: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
        assert gate.wait(SECONDS)
        return step(self, prompts)

    monkeypatch.setattr(Decoder, "join", join)
    async with generating(versions, caplog, max_batch=1, max_waiting=1) as here:
        here.pool.publish(versions.loaded(1))
        asked: dict[str, Any] = {"model": NAME, "prompt": _PROMPT, "max_tokens": 2}
        first = asyncio.create_task(here.client.completions.create(**asked))
        await until(lambda: here.generator.running + len(here.generator._groups) > 0)
        second = asyncio.create_task(here.client.completions.create(**asked))
        await until(lambda: here.generator.waiting == 1)
        with pytest.raises(openai.RateLimitError, match="too many requests are waiting") as refused:
            await here.client.completions.create(**asked)
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "rate_limit_exceeded"
        gate.set()
        assert (await first).choices[0].finish_reason is not None
        assert (await second).choices[0].finish_reason is not None


async def test_a_version_that_gives_no_numbers_fails_alone(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    async with generating(versions, caplog) as here:
        broken = versions.loaded(2)
        for tensor in broken.model.values():
            tensor.fill_(float("nan"))
        here.pool.publish(versions.loaded(1))
        here.pool.publish(broken)
        with pytest.raises(openai.InternalServerError, match="version 2 failed"):
            await here.client.completions.create(model=f"{NAME}:2", prompt=_PROMPT)
        stream = await here.client.completions.create(model=f"{NAME}:2", prompt=_PROMPT, stream=True)
        with pytest.raises(openai.APIError, match="version 2 failed"):
            [chunk async for chunk in stream]
        answer = await here.client.completions.create(model=f"{NAME}:1", prompt=_PROMPT, max_tokens=8, temperature=0)
        assert answer.choices[0].text == greedy(versions, 1, _PROMPT, 8)
