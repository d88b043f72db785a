"""A client's updates reach the log once: after a kill, again and again, and not at all when they could not count."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.errors import FederationFinished, Reason, Rejected
from llmos_stream.roles.client import Client, ClientState
from llmos_stream.roles.client.session import max_staleness_of
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import Event, UpdateHead
from llmos_stream.wire import read_chunk, unpack_prelude
from tests.federation import federation_of
from tests.roles.aids import LAYOUT, aggregator, delta_of, settings_for, update


class Killed(BaseException):
    """What nothing in the package catches."""


async def _killed(*_: object) -> None:
    raise Killed


def _client(
    running: RunningFederation, state: ClientState, offload: Offload, shutdown: Shutdown | None = None
) -> Client:
    federation = federation_of(running.broker, running.settings, offload, shutdown)
    return Client(federation, "c", LAYOUT, running.settings.codec, state)


async def _publish(client: Client, base: int, value: float = 1.0) -> int:
    published = await client.publish(Trained(delta_of(value), base, 10, {"loss": 0.5}, 2.0))
    return published.head.sequence


async def _spool(
    running: RunningFederation, folder: Path, offload: Offload, patch: pytest.MonkeyPatch, base: int = 0
) -> int:
    """A process that is killed with its update on the disk and not sent."""
    with ClientState("c", folder) as state, patch.context() as here:
        async with _client(running, state, offload) as client:
            await client.newest(None, 10.0)
            here.setattr(client, "_send", _killed)
            with pytest.raises(Killed):
                await _publish(client, base)
        waiting = state.unsent()
    assert waiting is not None
    return waiting.head.sequence


async def _advance(running: RunningFederation, versions: int) -> None:
    """Other clients make versions."""
    for number in range(versions):
        await running.send(update(delta_of(0.0), base_version=number, client_id="other", sequence=number), "other")
        await running.version(number + 1)


async def _heads(running: RunningFederation, client_id: str = "c") -> list[tuple[UpdateHead, bytes]]:
    """The updates of a client in the log so far, each of one record, with their message ids."""
    found = []
    async with running.broker.reader([running.topics.updates], start="earliest") as reader:
        while await reader.lag() > 0:
            for record in await reader.poll(0.1):
                chunk = read_chunk(record.value or b"")
                prelude = unpack_prelude(chunk.body)
                assert prelude is not None
                assert isinstance(prelude.head, UpdateHead)
                if prelude.head.client_id == client_id:
                    found.append((prelude.head, chunk.message_id))
    return found


def _data(event: Event) -> dict[str, Any]:
    return dict(event.data)


async def test_an_update_that_was_not_sent_is_sent_first(
    broker: Broker, federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aggregator(broker, settings_for(federation)) as running, Offload(1) as offload:
        sequence = await _spool(running, tmp_path, offload, monkeypatch)
        assert await _heads(running) == []
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                await client.newest(None, 10.0)
                sent = await client.send_unsent()
                assert sent is not None
                assert sent.head.sequence == sequence
                assert (state.unsent(), await client.send_unsent()) == (None, None)
                following = await _publish(client, 0)
        assert following == sequence + 1
        events = [_data(event) for event in await running.events("update_sent", 2)]
        assert [event["sequence"] for event in events] == [sequence, following]
        assert (events[0]["train_seconds"], events[1]["train_seconds"]) == (None, 2.0)  # nobody knows it any more
        first = await running.version(1)
        assert [(item.client_id, item.sequence) for item in first.head.manifest] == [("c", sequence)]


async def test_publish_sends_what_waits_before_it(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        sequence = await _spool(running, tmp_path, offload, monkeypatch)
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                assert await _publish(client, 0) == sequence + 1
        assert [head.sequence for head, _ in await _heads(running)] == [sequence, sequence + 1]


async def test_a_kill_between_the_acknowledgement_and_its_note_costs_a_duplicate(
    broker: Broker, federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aggregator(broker, settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state, monkeypatch.context() as patch:

            def killed(_: int) -> None:
                raise Killed

            async with _client(running, state, offload) as client:
                patch.setattr(client._outbox, "settle", killed)
                with pytest.raises(Killed):
                    await _publish(client, 0)
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                sent = await client.send_unsent()
                assert sent is not None
                following = await _publish(client, 0)
        last = await running.version(2)
        assert [item.sequence for item in last.head.manifest] == [following]
        (duplicate,) = await running.events("update_duplicate", 1)
        assert _data(duplicate)["sequence"] == sent.head.sequence
        (one, id_one), (again, id_again), _ = await _heads(running)
        assert one == again  # bit for bit: the head names the payload's digest
        assert id_one != id_again  # so that the chunks of one are not taken for those of the other


async def test_an_update_that_could_not_count_is_not_sent(broker: Broker, federation: str, tmp_path: Path) -> None:
    settings = settings_for(federation, staleness={"maximum": 1}, codec={"name": "int8"})
    async with aggregator(broker, settings) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                assert await client.newest(None, 10.0) is not None
                await _advance(running, 2)  # while this client trains
                with pytest.raises(
                    Rejected, match=r"base version 0 is 2 versions old; staleness\.maximum is 1"
                ) as told:
                    await _publish(client, 0)
                assert told.value.reason is Reason.TOO_STALE
                assert await _heads(running) == []
                first = state.take_sequence()
                newest = await client.newest(0, 10.0)
                assert newest is not None
                assert newest.head.number == 2
                assert await _publish(client, 1) == first + 1  # staleness 1 is within the maximum
        (rejected,) = await running.events("update_rejected", 1)
        assert (rejected.role, _data(rejected)["reason"]) == ("client", "too_stale")
        assert (_data(rejected)["client_id"], _data(rejected)["sequence"]) == ("c", None)
        assert [item.sequence for item in (await running.version(3)).head.manifest] == [first + 1]


async def test_an_update_that_waited_for_too_long_is_given_up(
    broker: Broker, federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(federation, staleness={"maximum": 1})
    async with aggregator(broker, settings) as running, Offload(1) as offload:
        sequence = await _spool(running, tmp_path, offload, monkeypatch)
        await _advance(running, 2)
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                newest = await client.newest(None, 10.0)
                assert newest is not None
                assert await client.send_unsent() is None
                assert state.unsent() is None
        with ClientState("c", tmp_path) as state:  # for good
            assert state.unsent() is None
            async with _client(running, state, offload) as client:
                assert await client.newest(None, 10.0) is not None
                assert await _publish(client, 2) == sequence + 1
        (rejected,) = await running.events("update_rejected", 1)
        assert (rejected.role, _data(rejected)["reason"], _data(rejected)["sequence"]) == (
            "client",
            "too_stale",
            sequence,
        )
        assert [head.sequence for head, _ in await _heads(running)] == [sequence + 1]


async def test_publish_gives_up_what_waited_for_too_long(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(federation, staleness={"maximum": 1})
    async with aggregator(MemoryBroker(), settings) as running, Offload(1) as offload:
        sequence = await _spool(running, tmp_path, offload, monkeypatch)
        await _advance(running, 2)
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                assert await client.newest(None, 10.0) is not None
                assert await _publish(client, 2) == sequence + 1
        assert [head.sequence for head, _ in await _heads(running)] == [sequence + 1]


async def test_what_waits_is_given_up_when_the_run_has_ended(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(federation, stop={"max_versions": 1})
    async with aggregator(MemoryBroker(), settings) as running, Offload(1) as offload:
        await _spool(running, tmp_path, offload, monkeypatch)
        await _advance(running, 1)
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                assert client.finished is not None
                with pytest.raises(FederationFinished, match="max_versions"):
                    await _publish(client, 1)
                assert await client.send_unsent() is None
            assert state.unsent() is None
        assert await _heads(running) == []


@pytest.mark.parametrize("codec", [{"name": "topk", "fraction": 0.1}, {"name": "topk2", "chunk": 64, "keep": 3}])
async def test_what_error_feedback_keeps_survives_a_client_opened_anew(
    federation: str, codec: dict[str, object]
) -> None:
    settings = settings_for(federation, codec=codec)
    delta = torch.arange(1.0, LAYOUT.numel + 1)
    async with aggregator(MemoryBroker(), settings) as running, Offload(1) as offload:
        state = ClientState("c", None)
        for _ in range(3):
            async with _client(running, state, offload) as client:
                await client.publish(Trained(delta.clone(), 0, 10, {}, 0.0))
        last = await running.version(3)
        owed = state.residual()
    assert owed is not None
    # All that the versions do not hold is owed: each update went in once, and so did each residual.
    torch.testing.assert_close(last.weights + owed, 3 * delta)


@pytest.mark.parametrize(
    ("rule", "maximum"),
    [
        ({"staleness": {"maximum": 20}}, 20),
        ({"staleness": {"maximum": 0}}, 0),
        ({}, None),
        ({"staleness": None}, None),
        ({"staleness": [20]}, None),
        ({"staleness": {}}, None),
        ({"staleness": {"maximum": -1}}, None),
        ({"staleness": {"maximum": True}}, None),
        ({"staleness": {"maximum": "20"}}, None),
        ({"staleness": {"maximum": 2.5}}, None),
    ],
)
def test_the_rule_of_a_version_is_read_with_care(rule: dict[str, object], maximum: int | None) -> None:
    assert max_staleness_of(rule) == maximum
