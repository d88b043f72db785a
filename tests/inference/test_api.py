"""The HTTP API over a pool of models that multiply by their version: answers, refusals, the route, the metrics."""

import asyncio
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.testing import until
from tests.inference.aids import SECONDS, loaded, served

_TOKEN = "let-me"  # noqa: S105
_ASK = {"inputs": [[1.0, 2.0, 3.0]]}


async def test_an_answer_names_the_version_that_gave_it_and_why() -> None:
    async with served() as here:
        here.pool.publish(loaded(2))
        here.pool.publish(loaded(3))
        answer = await here.http.post("/v1/predict", json={"inputs": [[1, 2, 3], [4, 5, 6]]})
        assert answer.status_code == 200
        assert answer.json() == {"version": 3, "why": "newest", "outputs": [[3, 6, 9], [12, 15, 18]]}
        answer = await here.http.post("/v1/predict", json={**_ASK, "version": 2})
        assert answer.json() == {"version": 2, "why": "asked", "outputs": [[2, 4, 6]]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ('{"inputs": [[1, 2]]}', 422, "each of shape [3] in finite numbers; got shape [2]"),
        ('{"inputs": [1, 2, 3]}', 422, "got shape []"),
        ('{"inputs": [[1, 2, 3], [4]]}', 422, "got lists of different lengths"),
        ('{"inputs": [["a", "b", "c"]]}', 422, "or what is no number"),
        ('{"inputs": [["1", "2", "3"]]}', 422, "or what is no number"),
        ('{"inputs": [[1, null, 3]]}', 422, "or what is no number"),
        ('{"inputs": [[1, {}, 3]]}', 422, "or what is no number"),
        ('{"inputs": [[1, NaN, 3]]}', 422, "got NaN, an infinity"),
        ('{"inputs": [[1, 1e39, 3]]}', 422, "more than torch.float32 holds"),
        ('{"inputs": []}', 422, "0 examples, expected 1 to 4"),
        ('{"inputs": [[1,2,3],[1,2,3],[1,2,3],[1,2,3],[1,2,3]]}', 422, "5 examples, expected 1 to 4"),
        ('{"inputs": 5}', 422, "inputs: Input should be a valid"),
        ("{}", 422, "inputs: Field required"),
        ('{"inputs": [[1, 2, 3]], "versoin": 1}', 422, "versoin: Extra inputs"),
        ('{"inputs": [[1, 2, 3]], "version": true}', 422, "version: Input should be a valid integer"),
        ('{"inputs": [[1, 2', 422, "Invalid JSON"),
        ("", 422, "Invalid JSON"),
        ("[" * 5000, 422, "Invalid JSON"),
        ('{"inputs": [[1, 2, 3]], "version": 9}', 404, "version 9 is not held; held are: 1"),
    ],
)
async def test_bad_input_is_refused_with_what_was_expected(body: str, status: int, said: str) -> None:
    async with served(max_batch=4) as here:
        here.pool.publish(loaded(1))
        answer = await here.http.post("/v1/predict", content=body)
        assert answer.status_code == status
        assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    "values",
    ["[]," * 2_700_000 + "[]", "0," * 4_000_000 + "0", "[[[" + "[[]]," * 1_000_000 + "0]]]"],
    ids=["empty lists", "numbers", "deep lists"],
)
async def test_what_no_examples_have_is_refused_before_it_is_parsed(values: str) -> None:
    """Millions of empty lists fit into a body, and take a hundred times the memory of the examples that may come."""
    body = f'{{"inputs": [{values}]}}'.encode()
    async with served(max_batch=4, max_body_bytes=len(body)) as here:
        here.pool.publish(loaded(1))
        tracemalloc.start()
        try:
            answer = await here.http.post("/v1/predict", content=body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer.status_code == 422
    assert "got more lists or numbers than 4 examples have" in answer.json()["detail"]
    assert peak < 3 * len(body)  # the body itself, on its way through


@pytest.mark.parametrize("path", ["/v1/models", "/v1/predict", "/docs", "/openapi.json"])
async def test_no_page_of_another_site_reads_the_answers(path: str) -> None:
    async with served(allowed_hosts="models.example.org") as here:
        here.pool.publish(loaded(1))
        answer = await here.http.post(path, json=_ASK, headers={"host": "evil.example"})
        assert answer.status_code == 421
        assert "inference.allowed_hosts" in answer.json()["detail"]
        good = await here.http.post("/v1/predict", json=_ASK, headers={"host": "models.example.org:8000"})
        assert good.status_code == 200


async def test_an_answer_never_repeats_a_bad_value() -> None:
    async with served() as here:
        here.pool.publish(loaded(1))
        answer = await here.http.post("/v1/predict", json={"inputs": "patient 4711", "version": "patient 4711"})
        assert answer.status_code == 422
        assert "4711" not in answer.text


@pytest.mark.parametrize("told", [True, False], ids=["with its size", "in pieces"])
async def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(told: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b" " * 700
        yield b" " * 700
        raise AssertionError("read past the limit")

    async with served(max_body_bytes=1024) as here:
        here.pool.publish(loaded(1))
        for method, path in (("POST", "/v1/predict"), ("PUT", "/v1/route")):
            answer = await here.http.request(method, path, content=b" " * 1025 if told else pieces())
            assert answer.status_code == 413
            assert "1024 bytes" in answer.json()["detail"]


async def test_a_large_body_within_the_limit_is_answered() -> None:
    async with served() as here:
        here.pool.publish(loaded(2))
        answer = await here.http.post("/v1/predict", content=b'{"inputs": [[1, 2, 3]]}' + b" " * (1 << 17))
        assert answer.json()["outputs"] == [[2, 4, 6]]


async def test_before_the_first_version_it_says_so() -> None:
    async with served() as here:
        answer = await here.http.post("/v1/predict", json=_ASK)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert "no version yet" in answer.json()["detail"]
        models = (await here.http.get("/v1/models")).json()
        assert models["serving"] is None
        assert models["models"] == []


async def test_where_too_much_waits_a_request_is_turned_away() -> None:
    gate, sizes = threading.Event(), list[int]()

    def wait(inputs: Tensor) -> None:
        sizes.append(len(inputs))
        assert gate.wait(SECONDS)

    async with served(max_batch=1, max_waiting=1) as here:
        here.pool.publish(loaded(1, wait))
        asked = []
        for begun, waiting in ((1, 0), (2, 0), (2, 1)):  # as many pass as there are threads
            asked.append(asyncio.create_task(here.http.post("/v1/predict", json=_ASK)))
            await until(lambda begun=begun, waiting=waiting: (len(sizes), here.batcher.waiting) == (begun, waiting))  # type: ignore[misc]
        answer = await here.http.post("/v1/predict", json=_ASK)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        gate.set()
        assert [(await one).status_code for one in asked] == [200, 200, 200]


async def test_a_model_that_fails_is_a_500_that_names_it() -> None:
    def broken(inputs: Tensor) -> None:
        raise RuntimeError("a secret value")

    async with served() as here:
        here.pool.publish(loaded(4, broken))
        answer = await here.http.post("/v1/predict", json=_ASK)
        assert answer.status_code == 500
        assert "version 4 failed" in answer.json()["detail"]
        assert "secret" not in answer.text


async def test_the_route_pins_and_sends_a_share_to_the_newest_and_goes_back() -> None:
    draws = iter([0.05, 0.1, 0.5])
    async with served(lambda: next(draws), token=_TOKEN) as here:
        for version in (1, 2, 3):
            here.pool.publish(loaded(version))
        head = {"Authorization": f"Bearer {_TOKEN}"}
        models = (await here.http.put("/v1/route", json={"pin": 2, "canary": 0.1}, headers=head)).json()
        assert (models["serving"], models["why"], models["pin"], models["canary"]) == (2, "pinned", 2, 0.1)
        assert [(one["version"], one["serves"], one["newest"]) for one in models["models"]] == [
            (1, False, False),
            (2, True, False),
            (3, False, True),
        ]
        assert models["models"][0]["weights_digest"] == f"{1:064x}"
        found = [(await here.http.post("/v1/predict", json=_ASK)).json() for _ in range(3)]
        assert [(one["version"], one["why"]) for one in found] == [(3, "canary"), (2, "pinned"), (2, "pinned")]
        assert [one["outputs"][0][0] for one in found] == [3, 2, 2]
        await here.http.put("/v1/route", json={}, headers=head)
        back = (await here.http.post("/v1/rollback", headers=head)).json()
        assert (back["serving"], back["why"]) == (2, "pinned")
        assert (await here.http.get("/v1/models")).json() == back


@pytest.mark.parametrize(
    ("set_token", "headers", "status"),
    [
        (None, {"Authorization": f"Bearer {_TOKEN}"}, 403),
        (None, {}, 403),
        ("", {"Authorization": "Bearer "}, 403),
        (_TOKEN, {}, 401),
        (_TOKEN, {"Authorization": "Bearer wrong"}, 401),
        (_TOKEN, {"Authorization": "Bearer wröng".encode("latin-1")}, 401),
        (_TOKEN, {"Authorization": f"Basic {_TOKEN}"}, 401),
    ],
)
async def test_only_a_token_changes_the_route(set_token: str | None, headers: dict[str, Any], status: int) -> None:
    async with served(token=set_token) as here:
        here.pool.publish(loaded(1))
        here.pool.publish(loaded(2))
        before = (await here.http.get("/v1/models")).json()
        for ask in (("PUT", "/v1/route", {"pin": 1}), ("POST", "/v1/rollback", None)):
            answer = await here.http.request(ask[0], ask[1], json=ask[2], headers=headers)
            assert answer.status_code == status
            assert (status == 401) == ("WWW-Authenticate" in answer.headers)
        assert (await here.http.get("/v1/models")).json() == before


@pytest.mark.parametrize(
    ("route", "status"),
    [({"pin": 9}, 404), ({"canary": 1.5}, 422), ({"canary": -0.1}, 422), ({"pin": "1"}, 422), ({"share": 1}, 422)],
)
async def test_a_bad_route_changes_nothing(route: dict[str, Any], status: int) -> None:
    async with served(token=_TOKEN) as here:
        here.pool.publish(loaded(1))
        before = here.pool.route
        answer = await here.http.put("/v1/route", json=route, headers={"Authorization": f"Bearer {_TOKEN}"})
        assert answer.status_code == status
        assert here.pool.route == before
        nowhere = await here.http.post("/v1/rollback", headers={"Authorization": f"Bearer {_TOKEN}"})
        assert nowhere.status_code == 409


async def test_the_page_and_its_parts_come_from_here() -> None:
    async with served() as here:
        page = await here.http.get("/docs")
        assert page.status_code == 200
        linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(linked) >= 3
        assert all(link.startswith("/") for link in linked)
        for link in linked:
            assert (await here.http.get(link)).status_code == 200
        assert '"validatorUrl": null' in page.text
        schema = (await here.http.get("/openapi.json")).json()
        assert {"/v1/predict", "/v1/models", "/v1/route", "/v1/rollback"} <= schema["paths"].keys()
        asked = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]
        here.pool.publish(loaded(1))
        assert (await here.http.post("/v1/predict", json=asked["example"])).status_code == 200


async def test_what_is_counted() -> None:
    async with served() as here:
        here.pool.publish(loaded(1))
        await here.http.post("/v1/predict", json=_ASK)
        await here.http.post("/v1/predict", json={"inputs": [[1]]})
        value = here.registry.get_sample_value
        count = "llmos_inference_requests_total"
        assert value(count, {"version": "1", "status": "200"}) == 1
        assert value(count, {"version": "none", "status": "422"}) == 1
        assert value("llmos_inference_request_seconds_count") == 2
        assert value("llmos_inference_batch_examples_sum") == 1


def test_versions_that_are_gone_leave_no_series_behind() -> None:
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry)
    for version in range(100):
        metrics.answered(version, 200, 0.01)
        metrics.show_pool([version], version, version)
    found = [sample for metric in registry.collect() for sample in metric.samples]
    assert sum(sample.name == "llmos_inference_requests_total" for sample in found) == 1
    assert registry.get_sample_value("llmos_inference_version") == 99
